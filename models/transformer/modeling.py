"""One decoder-only transformer whose variants are data in `TransformerConfig`.

Axes: B sequences, T query tokens, N query heads, K key/value heads, H head dim, D model width, F feed-forward width, V
vocabulary. A leading `...` is `[T]` in a ragged step and `[B, T]` in `dense`.

Activations have the parameters' dtype; norms, softmax, rope and logits are computed in float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flexjax import nn
from flexjax.model import Cache, CausalLM, Kept, PagedKV, RaggedBatch
from models.transformer.config import Layer, TransformerConfig


class Block(nnx.Module):
    """Norm, attend, add; norm, mix, add."""

    def __init__(self, config: TransformerConfig, make: nn.Maker):
        norm = functools.partial(_norm, config, make)
        self.attention_norm = norm("embed")
        self.attention = nn.Attention(
            make,
            qkv_bias=config.qkv_bias,
            out_bias=config.out_bias,
            norm_of_heads=functools.partial(norm, "head_dim", "rms") if config.qk_norm else None,
        )
        self.attention_post_norm = norm("embed") if config.post_norms else None
        self.mlp_norm = norm("embed")
        self.mlp = nn.MLP(make, activation=config.activation, gated=config.gated_mlp, bias=config.mlp_bias)
        self.mlp_post_norm = norm("embed") if config.post_norms else None
        self.recomputed = False  # In the backward pass, from x alone.

    def __call__(self, x: Float[Array, "*T D"], tables: nn.RopeTables, attend: nn.Attend) -> tuple[Array, Any]:
        run = functools.partial(self._run, tables=tables, attend=attend)
        return jax.checkpoint(run)(x) if self.recomputed else run(x)

    def _run(self, x: Array, tables: nn.RopeTables, attend: nn.Attend) -> tuple[Array, Any]:
        y, cache = self.attention(nn.whole(self.attention_norm(x)), tables, attend)
        x = nn.add(x, y if self.attention_post_norm is None else self.attention_post_norm(y))
        y = self.mlp(nn.whole(self.mlp_norm(x)))
        return nn.add(x, y if self.mlp_post_norm is None else self.mlp_post_norm(y)), cache


class PackedBlock(nnx.Module):
    """`Block` as the CPU's kernels serve it."""

    def __init__(self, block: Block, activation_dtype: str | None):
        self.attention = nn.PackedAttention(
            block.attention_norm, block.attention, block.attention_post_norm, activation_dtype
        )
        self.mlp = nn.PackedMLP(block.mlp_norm, block.mlp, block.mlp_post_norm, activation_dtype)

    def __call__(self, x: Float[Array, "*T D"], tables: nn.RopeTables, attend: nn.Attend) -> tuple[Array, Any]:
        x, cache = self.attention(x, tables, attend)
        return self.mlp(x), cache


class Transformer(CausalLM):
    """`blocks` is a list with one array a layer, or after `stacked` a `Scan`."""

    config: TransformerConfig
    blocks: Any
    embedding: Any  # Embedding or PackedEmbedding.
    unembedding: Any  # Linear, PackedLinear, or None where the embedding is tied.
    packs: bool  # Its blocks are packed.

    def __init__(self, config: TransformerConfig, *, dtype: Any, rngs: nnx.Rngs):
        make = nn.Maker(config.axis_sizes, config.num_layers, dtype, rngs)
        self.config = config
        self.embedding = make.embedding("vocab", tied=config.tied_embeddings)
        self.position_embedding = make.embedding("position") if config.learned_positions else None
        self.blocks = nnx.List([Block(config, make) for _ in config.layers])
        self.final_norm = _norm(config, make, "embed")
        self.unembedding = None if config.tied_embeddings else make.into("embed", "vocab")
        self.loops = self.packs = self.rows_apart = False

    def __call__(self, batch: RaggedBatch, cache: Cache) -> tuple[Float[Array, "T D"], Cache]:
        windows = nn.layout_of(self).windows

        def attend(layer: Layer, pages: Any, index: Array | None, q: Array, k: Array, v: Array):
            return nn.over_pages(q, k, v, pages, index, batch, windows.index(layer.window), **self._form(layer))

        return self._forward(batch.tokens, batch.positions, cache, attend)

    def dense(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"] | None = None, cache: Cache | None = None
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """`positions` (0 … T-1 unless given) feed the position embedding alone where there is no cache. A token whose
        position lies past the cache is not written."""
        batch_size, length = tokens.shape
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch_size, length))

        def attend(layer: Layer, kv: Array | None, index: Array | None, q: Array, k: Array, v: Array):
            # Where layers run in stages, q is of a microbatch, and the positions are of the whole batch.
            return nn.over_rectangle(q, k, v, kv, index, None if kv is None else positions, **self._form(layer))

        return self._forward(tokens, positions, cache, attend)

    def _form(self, layer: Layer) -> dict[str, Any]:
        return dict(scale=self.query_scale, window=layer.window, softcap=self.config.attention_softcap)

    def _forward(self, tokens: Array, positions: Array, cache: Any, attend: Callable[..., Any]) -> tuple[Array, Any]:
        config = self.config
        x = self.embedding(tokens)
        if config.scaled_embeddings:
            x = x * jnp.asarray(config.d_model**0.5, x.dtype)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        x = nn.whole(x)

        def apply(layer: Layer, block: Any, tables: Any, leaves: Any, indices: Any, x: Array):
            (leaf,), (index,) = leaves, indices
            x, leaf = block(x, tables[layer.rope], functools.partial(attend, layer, leaf, index))
            return x, (leaf,)

        layout = nn.layout_of(self)
        if self.loops:
            x, cache = self.blocks(x, positions, self._tables, cache, apply, layout)
        else:
            x, cache = nn.in_a_row(config.layers, self.blocks, x, self._tables(positions), cache, apply, layout)
        return nn.whole(self.final_norm(x)), cache

    def _tables(self, positions: Int[Array, "*T"]) -> dict[nn.Rope | None, nn.RopeTables]:
        """The cosines and sines of each of the layers' ropes."""
        ropes = dict.fromkeys(layer.rope for layer in self.config.layers)
        tables = {rope: None if rope is None else rope.tables(positions, self.config.head_dim) for rope in ropes}
        # Packed blocks are calls that XLA does not look into: it would compute each sine anew in every layer and head,
        # a tenth of a prompt's time.
        return {rope: jax.lax.optimization_barrier(table) for rope, table in tables.items()} if self.packs else tables

    def logits(self, hidden: Float[Array, "*T D"]) -> Float[Array, "*T V"]:
        logits = self.embedding.logits(hidden) if self.unembedding is None else self.unembedding(hidden)
        return nn.softcapped(logits, self.config.final_softcap)

    def stacked(self, *, release: bool = False, stages: int = 1, microbatches: int = 1) -> "Transformer":
        """It compiles in the time of one repetition, and its cache is one array.

        Refusal for more stages than repetitions, or other stages than those of a model that is stacked already.
        """
        if self.loops:
            self.blocks.check(stages, microbatches)
            return self
        model = self._same()
        model.blocks, model.loops = nn.Scan(self.config.layers, self.blocks, release, stages, microbatches), True
        return model

    def unstacked(self) -> "Transformer":
        if not self.loops:
            return self
        model = self._same()
        model.blocks, model.loops = nnx.List(self.blocks.layers()), False
        return model

    def recomputing(self) -> "Transformer":
        model = self._same()
        for _, module in nnx.iter_modules(model):
            if isinstance(module, Block):
                module.recomputed = True
        return model

    def packed(self, *, activation_dtype: str | None = None, release: bool = False) -> "Transformer":
        if self.packs:
            return self
        plain = self.unstacked()
        model = plain._same()
        model.packs = model.rows_apart = True
        model.blocks = nnx.List([])
        for block in plain.blocks:
            model.blocks.append(PackedBlock(block, activation_dtype))
            if release:
                nn.free(block, model.blocks[-1])
        if plain.unembedding is None:
            model.embedding = nn.PackedEmbedding(plain.embedding, activation_dtype)
        else:
            model.unembedding = nn.together(plain.unembedding, activation_dtype=activation_dtype)
        if release:
            nn.free(plain, model)
        return model

    def _same(self) -> "Transformer":
        """Another module over the same parameters."""
        return nnx.merge(*nnx.split(self))

    @property
    def query_scale(self) -> float:
        scalar = self.config.query_scalar
        return (self.config.head_dim if scalar is None else scalar) ** -0.5

    @property
    def rotary(self) -> tuple[bool, ...]:
        return tuple(layer.rope is not None for layer in self.config.layers)

    def kept(self) -> list[Kept]:
        c = self.config
        copies = c.num_heads // c.num_kv_heads
        return [(PagedKV(c.num_kv_heads, c.head_dim, layer.window, copies),) for layer in c.layers]


def _norm(config: TransformerConfig, make: nn.Maker, axis: str, kind: Any = None) -> nn.Norm:
    return nn.Norm(make, axis, kind or config.norm, eps=config.norm_eps, offset=config.norm_offset)
