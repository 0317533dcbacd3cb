"""The transformer as the CPU's kernel serves it: packed weights, and each norm, activation and residual sum in the
product that it stands beside. Five calls a layer, where the plain model makes a dozen."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flexjax.hardware import memory
from flexjax.kernels.rotary import rotary
from flexjax.quantize import Norm as FoldedNorm
from flexjax.quantize import PackedTable, PackedWeight
from models.transformer.config import TransformerConfig
from models.transformer.modeling import ACTIVATIONS, Attend, Block, Norm, RopeTables, Transformer, add, softcapped
from models.transformer.rope import rotate

FOLDED_ACTIVATIONS = ("silu", "gelu_tanh")


def _folded(norm: Norm) -> FoldedNorm | None:
    """What the product takes over of a norm: an RMSNorm; a LayerNorm it leaves where it is."""
    if norm.kind != "rms":
        return None
    return FoldedNorm(norm.scale[...].astype(jnp.float32) + norm.offset, norm.eps)


class PackedBlock(nnx.Module):
    """`Block`, computed in five calls: queries, keys and values; attention; out; gates and up; down."""

    def __init__(self, block: Block, config: TransformerConfig, activation_dtype: str | None):
        attention, mlp = block.attention, block.mlp
        self.heads = (config.num_heads, config.num_kv_heads)
        self.head_dim = config.head_dim
        self.attention_norm = None if _folded(block.attention_norm) else block.attention_norm
        self.qkv = PackedWeight(
            (attention.query, attention.key, attention.value),
            (attention.query_bias, attention.key_bias, attention.value_bias),
            norm=_folded(block.attention_norm),
            activation_dtype=activation_dtype,
        )
        self.query_norm, self.key_norm = attention.query_norm, attention.key_norm
        self.out = PackedWeight((attention.out,), (attention.out_bias,), activation_dtype=activation_dtype)
        self.attention_post_norm = block.attention_post_norm
        self.mlp_norm = None if _folded(block.mlp_norm) else block.mlp_norm
        self.gated, self.activation = mlp.gate is not None, mlp.activation
        folded = mlp.activation in FOLDED_ACTIVATIONS
        self.left = None if folded else mlp.activation  # Left to XLA.
        self.into = PackedWeight(
            (mlp.up,) if mlp.gate is None else (mlp.gate, mlp.up),
            (mlp.up_bias,) if mlp.gate is None else (mlp.gate_bias, mlp.up_bias),
            norm=_folded(block.mlp_norm),
            activation=mlp.activation if folded else "none",
            gate=folded and self.gated,
            activation_dtype=activation_dtype,
        )
        self.down = PackedWeight((mlp.down,), (mlp.down_bias,), activation_dtype=activation_dtype)
        self.mlp_post_norm = block.mlp_post_norm

    def __call__(self, x: Float[Array, "*T D"], tables: RopeTables, attend: Attend) -> tuple[Array, Any]:
        *leading, D = x.shape
        rows = x.reshape(-1, D)
        parts = self._projections(rows, tables, leading)
        mixed, cache = attend(*(part.reshape(*leading, *part.shape[1:]) for part in parts))
        rows = _added(rows, mixed.reshape(rows.shape[0], -1), self.out, self.attention_post_norm)
        return _added(rows, self._hidden(rows), self.down, self.mlp_post_norm).reshape(x.shape), cache

    def _projections(self, rows: Float[Array, "T D"], tables: RopeTables, leading: list[int]) -> tuple[Array, ...]:
        """Queries, keys and values in the dtype of the rows, the first two turned."""
        qkv = self.qkv(rows if self.attention_norm is None else self.attention_norm(rows))
        num_heads, num_kv_heads, half = *self.heads, self.head_dim // 2
        if tables is not None:
            cos, sin = (jnp.broadcast_to(t, (*leading, 1, half)).reshape(-1, 1, half) for t in tables)
            tables = cos, sin
        if tables is not None and self.query_norm is None:
            cos, sin = (table[:, 0] for table in tables)
            return rotary(qkv, cos, sin, num_heads=num_heads, num_kv_heads=num_kv_heads, dtype=rows.dtype)
        heads = qkv.reshape(rows.shape[0], -1, self.head_dim)
        q, k, v = jnp.split(heads, [num_heads, num_heads + num_kv_heads], axis=1)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if tables is not None:
            q, k = rotate(q, tables), rotate(k, tables)
        return q.astype(rows.dtype), k.astype(rows.dtype), v.astype(rows.dtype)

    def _hidden(self, rows: Float[Array, "T D"]) -> Float[Array, "T F"]:
        normed = rows if self.mlp_norm is None else self.mlp_norm(rows)
        if self.left is None:
            return self.into(normed, out_dtype=rows.dtype)
        act, hidden = ACTIVATIONS[self.left], self.into(normed)
        if not self.gated:
            return act(hidden).astype(rows.dtype)
        gates, values = jnp.split(hidden, 2, axis=-1)
        return (act(gates) * values).astype(rows.dtype)


def _added(rows: Array, x: Array, weight: PackedWeight, norm: Norm | None) -> Array:
    """The residual sum, within the product where nothing stands between."""
    if norm is None:
        return weight(x, residual=rows, out_dtype=rows.dtype)
    return add(rows, norm(weight(x)))


def _free(plain: nnx.Module, packed: nnx.Module) -> None:
    """Deletes the arrays of the one that the other does not share."""
    kept = jax.block_until_ready(jax.tree.leaves(nnx.state(packed)))  # Until then the others are still read.
    shared = {id(array) for array in kept}
    for array in jax.tree.leaves(nnx.state(plain)):
        if id(array) not in shared:
            array.delete()
    memory.trim()  # Or the heap keeps what was freed, since what comes next has other sizes.


class PackedTransformer(Transformer):
    """A transformer for the CPU alone, not to be trained or saved."""

    rows_apart = True
    blocks: Any
    embedding: Any

    def __init__(self, model: Transformer, activation_dtype: str | None, *, release: bool = False):
        """`release` frees the arrays of each layer, and of the tables, as they are packed."""
        config = self.config = model.config
        self.position_embedding, self.final_norm = model.position_embedding, model.final_norm
        blocks: Any = model.blocks  # A list: the layers are not stacked.
        self.blocks = nnx.List([])
        for block in blocks:
            self.blocks.append(PackedBlock(block, config, activation_dtype))
            if release:
                _free(block, self.blocks[-1])
        if model.unembedding is None:
            self.embedding = PackedTable(model.embedding, activation_dtype)
            self.unembedding = None
        else:
            self.embedding = model.embedding
            self.unembedding = PackedWeight((model.unembedding,), (None,), activation_dtype=activation_dtype)
        if release:
            _free(model, self)

    def _forward(self, tokens: Array, positions: Array, cache: Any, attend: Callable[..., Any]) -> tuple[Array, Any]:
        config = self.config
        x = self.embedding.rows(tokens) if self.unembedding is None else self.embedding[...][tokens]
        if config.scaled_embeddings:
            x = x * jnp.asarray(config.d_model**0.5, x.dtype)
        if self.position_embedding is not None:
            x = x + self.position_embedding[...][positions]
        # Held, or XLA would compute each sine anew in every layer and head: a tenth of a prompt's time.
        tables = {rope: jax.lax.optimization_barrier(table) for rope, table in self._tables(positions).items()}
        new_cache = []
        for layer, block, leaf in zip(config.layers, self.blocks, cache, strict=True):
            x, leaf = block(x, tables[layer.rope], functools.partial(attend, layer, leaf, None))
            new_cache.append(leaf)
        return self.final_norm(x), new_cache

    def logits(self, hidden: Float[Array, "*T D"]) -> Float[Array, "*T V"]:
        weight = self.embedding if self.unembedding is None else self.unembedding
        logits = weight(hidden.reshape(-1, hidden.shape[-1]))
        return softcapped(logits.reshape(*hidden.shape[:-1], -1), self.config.final_softcap)
