"""One decoder-only transformer whose variants are data in `TransformerConfig`.

Axes: B sequences, T query tokens, S key/value tokens, N query heads, K key/value heads, G = N // K,
H head dim, D model width, F feed-forward width, V vocabulary. A leading `...` is `[T]` in a ragged
step and `[B, T]` in `dense`.

Activations have the parameters' dtype; norms, softmax, rope and logits are computed in float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, normal, ones, variance_scaling, zeros
from jaxtyping import Array, Float, Int

from flexjax.hardware.sharding import SERVING, TRAINING, constrain, constrain_factor, split_ways
from flexjax.kernels.ragged_paged_attention import one_pool, put_back, ragged_paged_attention
from flexjax.model import Cache, CacheLeaf, RaggedBatch
from flexjax.quantize import QuantizedTable, QuantizedWeight, Weight, table_operand
from models.transformer.cache import dense, paged
from models.transformer.config import Layer, TransformerConfig
from models.transformer.rope import Rope, rotate
from models.transformer.scan import Scan

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
LONG_CONTEXT, QUERY_BLOCK = 1024, 512  # Tokens of a device: from where on training attends in blocks, and how large.
MASKED = -1e30  # Finite, so that a fully masked row stays free of NaN.

RopeTables = tuple[Array, Array] | None
# Queries, keys and values of every row → the mixed values and the cache with the rows written.
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]


class Maker:
    """Declares parameters: one call gives shape, dtype, logical axes (`param.axes`) and first value."""

    def __init__(self, config: TransformerConfig, dtype: Any, rngs: nnx.Rngs):
        self.sizes, self.dtype, self.rngs = config.axis_sizes, dtype, rngs
        # GPT-2's rule: the residual stream keeps its scale however many layers add to it.
        self.residual_scale = 0.5 / config.num_layers

    def __call__(self, *axes: str, init: Initializer, **metadata: Any) -> nnx.Param:
        shape = tuple(self.sizes[axis] for axis in axes)
        return nnx.Param(init(self.rngs.params(), shape, self.dtype), axes=axes, **metadata)

    def into(self, *axes: str) -> nnx.Param:
        """A projection from the model width."""
        outputs = tuple(range(1, len(axes)))
        return self(*axes, init=variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=outputs), summed=1)

    def back(self, *axes: str) -> nnx.Param:
        """A projection to the model width, whose result is added to the residual stream."""
        inputs = tuple(range(len(axes) - 1))
        scale = self.residual_scale
        init = variance_scaling(scale, "fan_in", "normal", in_axis=inputs, out_axis=-1)
        return self(*axes, init=init, summed=len(inputs))

    def bias(self, wanted: bool, *axes: str) -> nnx.Param | None:
        return self(*axes, init=zeros) if wanted else None


def project(x: Float[Array, "*T D"], weight: Weight, bias: nnx.Param | None) -> Float[Array, "..."]:
    """`x @ weight + bias` over the first axis of a `[D, ...]` weight, float32.

    The dot is two-dimensional: with two output axes XLA's CPU backend takes twice the time. Its result
    stays float32 because what follows (activation, rope, residual) is computed there.
    """
    if isinstance(weight, QuantizedWeight):
        y = weight(x)
    else:
        x, matrix = beside(x, weight, axis=0), weight[...].reshape(weight.shape[0], -1)
        y = jnp.einsum("...D,DO->...O", x, matrix, preferred_element_type=jnp.float32)
        y = y.reshape(*x.shape[:-1], *weight.shape[1:])
    return y if bias is None else y + jnp.broadcast_to(bias[...].astype(jnp.float32), y.shape)


def project_heads(x: Float[Array, "*T N H"], weight: Weight, bias: nnx.Param | None) -> Float[Array, "*T D"]:
    """`project` of the heads side by side, for an `[N, H, D]` weight."""
    x = x.reshape(*x.shape[:-2], -1)
    if isinstance(weight, QuantizedWeight):
        y = weight(x)
    else:
        matrix = weight[...].reshape(-1, weight.shape[-1])
        y = jnp.einsum("...O,OD->...D", x, matrix, preferred_element_type=jnp.float32)
    return y if bias is None else y + jnp.broadcast_to(bias[...].astype(jnp.float32), y.shape)


def add(x: Float[Array, "*T D"], y: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
    """The residual sum, rounded once."""
    return whole((x.astype(jnp.float32) + y).astype(x.dtype))


def whole(x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
    """A row is whole on its device. Left to itself, XLA would split it wherever a weight is split by `embed`, and
    gather it again in every layer.

    A ragged step's rows are all on every device of a mesh; a rectangular batch, which trains, is split by its
    sequences and their length."""
    if x.ndim == 2:
        return constrain(x, ("rows", "embed"), SERVING)
    return constrain(x, ("batch", "length", "embed"), TRAINING)


def looked_up(table: Float[Array, "V D"], tokens: Int[Array, "*T"]) -> Float[Array, "*T D"]:
    """The rows of `tokens`. In training each device looks up its columns for all examples of its data group, and these
    change places for whole rows of its own: the table, larger than they, stays where it is."""
    if tokens.ndim == 1:
        return table[tokens]
    tokens = constrain(tokens, ("group_batch", None), TRAINING)
    x = constrain(table[tokens], ("group_batch", None, "embed"), TRAINING)
    # Along one mesh axis at a time, which is how XLA lets parts change places: here sequence, later fsdp.
    return constrain(x, ("group_batch", "length", "embed"), TRAINING)


def beside(x: Float[Array, "*T D"], weight: nnx.Param | QuantizedTable, axis: int) -> Float[Array, "*T D"]:
    """A ragged step's rows before they are multiplied with `axis` of a weight: split where the weight is."""
    axes = weight.get_metadata("axes")[-weight.ndim :]  # In a loop over layers, of one layer's weight.
    return constrain_factor(x, weight, axes, axis, SERVING) if x.ndim == 2 else x


class Norm(nnx.Module):
    """RMSNorm, or LayerNorm with a bias, over the last axis; float32 inside."""

    def __init__(self, config: TransformerConfig, make: Maker, axis: str, kind: str):
        self.eps, self.offset, self.kind = config.norm_eps, config.norm_offset, kind
        self.scale = make(axis, init=zeros if config.norm_offset else ones)
        self.bias = make.bias(kind == "layer", axis)

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.eps)
        # Not an einsum: as a dot, XLA's CPU backend merges it with the products that follow and widens their
        # bfloat16 weights to float32, a copy of each in every step.
        y = y * jnp.broadcast_to(self.scale[...].astype(jnp.float32) + self.offset, y.shape)
        if self.bias is not None:
            y = y + jnp.broadcast_to(self.bias[...].astype(jnp.float32), y.shape)
        return y.astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention; where keys and values live is the caller's business (`attend`)."""

    def __init__(self, config: TransformerConfig, make: Maker):
        self.query = make.into("embed", "heads", "head_dim")
        self.key = make.into("embed", "kv_heads", "head_dim")
        self.value = make.into("embed", "kv_heads", "head_dim")
        self.out = make.back("heads", "head_dim", "embed")
        self.query_bias = make.bias(config.qkv_bias, "heads", "head_dim")
        self.key_bias = make.bias(config.qkv_bias, "kv_heads", "head_dim")
        self.value_bias = make.bias(config.qkv_bias, "kv_heads", "head_dim")
        self.out_bias = make.bias(config.out_bias, "embed")
        self.query_norm = Norm(config, make, "head_dim", "rms") if config.qk_norm else None
        self.key_norm = Norm(config, make, "head_dim", "rms") if config.qk_norm else None

    def __call__(self, x: Float[Array, "*T D"], tables: RopeTables, attend: Attend) -> tuple[Array, Any]:
        q = project(x, self.query, self.query_bias)
        k = project(x, self.key, self.key_bias)
        v = project(x, self.value, self.value_bias)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if tables is not None:
            q, k = rotate(q, tables), rotate(k, tables)
        mixed, cache = attend(q.astype(x.dtype), k.astype(x.dtype), v.astype(x.dtype))
        return project_heads(mixed, self.out, self.out_bias), cache


class MLP(nnx.Module):
    def __init__(self, config: TransformerConfig, make: Maker):
        self.activation = config.activation
        self.gate = make.into("embed", "mlp") if config.gated_mlp else None
        self.up = make.into("embed", "mlp")
        self.down = make.back("mlp", "embed")
        self.gate_bias = make.bias(config.mlp_bias and config.gated_mlp, "mlp")
        self.up_bias = make.bias(config.mlp_bias, "mlp")
        self.down_bias = make.bias(config.mlp_bias, "embed")

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
        act = ACTIVATIONS[self.activation]
        up = project(x, self.up, self.up_bias)
        hidden = act(up) if self.gate is None else act(project(x, self.gate, self.gate_bias)) * up
        return project(hidden.astype(x.dtype), self.down, self.down_bias)


class Block(nnx.Module):
    """Norm, attend, add; norm, mix, add."""

    def __init__(self, config: TransformerConfig, make: Maker):
        self.attention_norm = Norm(config, make, "embed", config.norm)
        self.attention = Attention(config, make)
        self.attention_post_norm = Norm(config, make, "embed", config.norm) if config.post_norms else None
        self.mlp_norm = Norm(config, make, "embed", config.norm)
        self.mlp = MLP(config, make)
        self.mlp_post_norm = Norm(config, make, "embed", config.norm) if config.post_norms else None
        self.recomputed = False  # In the backward pass, from x alone.

    def __call__(self, x: Float[Array, "*T D"], tables: RopeTables, attend: Attend) -> tuple[Array, Any]:
        run = functools.partial(self._run, tables=tables, attend=attend)
        return jax.checkpoint(run)(x) if self.recomputed else run(x)

    def _run(self, x: Array, tables: RopeTables, attend: Attend) -> tuple[Array, Any]:
        y, cache = self.attention(whole(self.attention_norm(x)), tables, attend)
        x = add(x, y if self.attention_post_norm is None else self.attention_post_norm(y))
        y = self.mlp(whole(self.mlp_norm(x)))
        return add(x, y if self.mlp_post_norm is None else self.mlp_post_norm(y)), cache


class Transformer(nnx.Module):
    """A `flexjax.model.CausalLM`.

    `blocks` is a list with one array a layer, or after `stacked` a `Scan`, and the cache likewise a list with a
    leaf a layer, or of one leaf with a leading layer axis.
    """

    blocks: nnx.List | Scan

    def __init__(self, config: TransformerConfig, *, dtype: Any, rngs: nnx.Rngs):
        make = Maker(config, dtype, rngs)
        self.config = config
        self.embedding = make("vocab", "embed", init=normal(0.02), tied=config.tied_embeddings)
        self.position_embedding = make("position", "embed", init=normal(0.02)) if config.learned_positions else None
        self.blocks = nnx.List([Block(config, make) for _ in config.layers])
        self.final_norm = Norm(config, make, "embed", config.norm)
        self.unembedding = None if config.tied_embeddings else make.into("embed", "vocab")

    def __call__(self, batch: RaggedBatch, cache: Cache) -> tuple[Float[Array, "T D"], Cache]:
        """Hidden states of every row of a ragged step, and the paged cache with its tokens written."""

        def attend(layer: Layer, pages: Any, index: Array | None, q: Array, k: Array, v: Array):
            pool, table = pages, batch.page_table
            if index is not None:  # All layers' pages are one pool, so that no layer's are sliced out of it.
                pool, num_pages = one_pool(pages, index)
                table = table + index * num_pages
            mixed, pool = ragged_paged_attention(
                q, k, v, pool, batch.query_starts, batch.kv_lengths, table,
                scale=self.query_scale, window=layer.window, softcap=self.config.attention_softcap,
                max_query_len=batch.max_query_len,
            )  # fmt: skip
            return mixed, pool if index is None else put_back(pool, pages, index)

        return self._forward(batch.tokens, batch.positions, cache, attend)

    def dense(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"] | None = None, cache: Cache | None = None
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Hidden states of a rectangular batch.

        Without a cache the T tokens see themselves and those before them; `positions` (0 … T-1 unless
        given) feed the position embedding alone. With one, each token is written at its own position
        and sees all positions up to it; a token whose position lies past the cache is not written.
        """
        batch_size, length = tokens.shape
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch_size, length))

        def attend(layer: Layer, kv: Array | None, index: Array | None, q: Array, k: Array, v: Array):
            seen_at = positions
            if kv is None:
                # Of a microbatch, where layers run in stages.
                seen_at = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), q.shape[:2])
            else:
                rows = jnp.broadcast_to(jnp.arange(batch_size)[:, None], (batch_size, length))
                at = (rows, positions) if index is None else (index, rows, positions)
                kv = kv.at[at].set(jnp.stack([k, v], axis=3).astype(kv.dtype), mode="drop")
                own = kv if index is None else kv[index]
                k, v = own[:, :, :, 0].astype(q.dtype), own[:, :, :, 1].astype(q.dtype)
            q = constrain(q, ("batch", "length", "heads", "head_dim"), TRAINING)
            # In training a device's queries see the keys and values of all tokens, which are gathered: without the
            # first constraint XLA may gather what they are made of, and make them everywhere.
            k, v = (constrain(x, ("batch", "length", "kv_heads", "head_dim"), TRAINING) for x in (k, v))
            k, v = (constrain(x, ("batch", None, "kv_heads", "head_dim"), TRAINING) for x in (k, v))
            attention = dense_attention if kv is not None else attention_in_blocks
            mixed = attention(
                q, k, v, seen_at, scale=self.query_scale, window=layer.window, softcap=self.config.attention_softcap
            )
            return mixed, kv

        leaves = [None] * self._num_leaves if cache is None else cache
        hidden, new_cache = self._forward(tokens, positions, leaves, attend)
        return hidden, None if cache is None else new_cache

    def _forward(self, tokens: Array, positions: Array, cache: Any, attend: Callable[..., Any]) -> tuple[Array, Any]:
        config = self.config
        table = self.embedding
        x = table.rows(tokens) if isinstance(table, QuantizedTable) else looked_up(table[...], tokens)
        if config.scaled_embeddings:
            x = x * jnp.asarray(config.d_model**0.5, x.dtype)
        if self.position_embedding is not None:
            x = x + looked_up(self.position_embedding[...], positions)
        x = whole(x)
        if isinstance(self.blocks, Scan):
            (leaf,) = cache
            x, leaf = self.blocks(x, positions, self._tables, leaf, attend)
            return whole(self.final_norm(x)), [leaf]
        tables, new_cache = self._tables(positions), []
        for layer, block, leaf in zip(config.layers, self.blocks, cache, strict=True):
            x, leaf = block(x, tables[layer.rope], functools.partial(attend, layer, leaf, None))
            new_cache.append(leaf)
        return whole(self.final_norm(x)), new_cache

    def _tables(self, positions: Int[Array, "*T"]) -> dict[Rope | None, RopeTables]:
        """The cosines and sines of each of the layers' ropes."""
        ropes = dict.fromkeys(layer.rope for layer in self.config.layers)
        return {rope: None if rope is None else rope.tables(positions, self.config.head_dim) for rope in ropes}

    def logits(self, hidden: Float[Array, "*T D"]) -> Float[Array, "*T V"]:
        """Float32 logits, soft-capped where the architecture says so."""
        if self.unembedding is None:
            hidden = beside(hidden, self.embedding, axis=1)
            table, scale = table_operand(self.embedding, hidden.dtype)
            logits = jnp.einsum("...D,VD->...V", hidden, table, preferred_element_type=jnp.float32)
            logits = logits if scale is None else logits * jnp.broadcast_to(scale, logits.shape)
        else:
            logits = project(hidden, self.unembedding, None)
        return softcapped(logits, self.config.final_softcap)

    def stacked(self, *, release: bool = False, stages: int = 1, microbatches: int = 1) -> "Transformer":
        """The same model with the weights of its repeating layers stacked and the layers in a loop.

        It compiles in the time of one repetition, and its cache is one array. Chips with a compiler that
        fuses the slice of a layer's weights into their product like it; others copy every slice first.
        `release` frees this model's arrays as they are stacked.

        `stages` is how many parts the stack must divide into, a mesh's axis `stage`: `dense` without a cache then
        sends `microbatches` of its examples through those, and through the layers left over all at once.
        ValueError for more stages than repetitions, or other stages than those of a model that is stacked already.
        """
        if isinstance(self.blocks, Scan):
            self.blocks.check(stages, microbatches)
            return self
        model = nnx.merge(*nnx.split(self))
        model.blocks = Scan(self.config.layers, self.blocks, release, stages, microbatches)
        return model

    def unstacked(self) -> "Transformer":
        """The same model with one array a layer."""
        if not isinstance(self.blocks, Scan):
            return self
        model = nnx.merge(*nnx.split(self))
        model.blocks = nnx.List(self.blocks.layers())
        return model

    def recomputing(self) -> "Transformer":
        """The same model, which in training keeps of each layer its input alone."""
        model = nnx.merge(*nnx.split(self))
        for _, module in nnx.iter_modules(model):
            if isinstance(module, Block):
                module.recomputed = True
        return model

    def packed(self, *, activation_dtype: str | None = None, release: bool = False) -> "Transformer":
        """The same model for this machine's CPU kernels, its projections copied into the form that they stream;
        `release` frees this model's arrays as they are packed."""
        from models.transformer.packed import PackedTransformer  # It is made of what is here.

        if isinstance(self, PackedTransformer):
            return self
        return PackedTransformer(self.unstacked(), activation_dtype, release=release)

    @property
    def _num_leaves(self) -> int:
        return 1 if isinstance(self.blocks, Scan) else self.config.num_layers

    @property
    def query_scale(self) -> float:
        scalar = self.config.query_scalar
        return (self.config.head_dim if scalar is None else scalar) ** -0.5

    @property
    def rotary(self) -> tuple[bool, ...]:
        """Whether each layer turns its keys by their positions."""
        return tuple(layer.rope is not None for layer in self.config.layers)

    def cache_spec(self, num_pages: int, page_size: int, num_slots: int, dtype: Any) -> list[Any]:
        """One leaf a layer, or when stacked one of all (`models.transformer.cache`). Attention needs no slots."""
        return paged(self.config, isinstance(self.blocks, Scan), num_pages, page_size, dtype)

    def dense_cache_spec(self, batch_size: int, length: int, dtype: Any) -> list[CacheLeaf]:
        """One `[B, S, K, 2, H]` leaf a layer, or one `[L, …]` of all when stacked."""
        return dense(self.config, isinstance(self.blocks, Scan), (batch_size, length), ("batch", "length"), dtype)


def softcapped(x: Array, cap: float | None) -> Array:
    return x if cap is None else cap * jnp.tanh(x / cap)


def dense_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    seen_at: Int[Array, "B T"],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    """softmax(softcap(scale · q kᵀ)) v over the keys s with seen_at - window < s ≤ seen_at.

    Query head n reads key/value head n // G.
    """
    batch_size, length, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    q = q.reshape(batch_size, length, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32) * scale
    scores = softcapped(scores, softcap)
    behind = seen_at[:, :, None] - jnp.arange(k.shape[1], dtype=jnp.int32)[None, None, :]
    visible = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    scores = jnp.where(visible[:, None, None, :, :], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v)
    return mixed.reshape(batch_size, length, num_heads, head_dim)


def attention_in_blocks(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    seen_at: Int[Array, "B T"],
    **form: Any,
) -> Float[Array, "B T N H"]:
    """`dense_attention`, in long contexts a block of each device's queries at a time.

    The scores of a block are computed again in the backward pass, so that those of all never exist together.
    """
    ways = split_ways("length", TRAINING)
    batch_size, length = seen_at.shape
    blocks = length // ways // QUERY_BLOCK
    if length <= ways * LONG_CONTEXT or length % (ways * QUERY_BLOCK):
        return dense_attention(q, k, v, seen_at, **form)

    def split(x: Array) -> Array:  # Into parts of every device's own tokens, so that none changes place.
        x = x.reshape(batch_size, ways, blocks, QUERY_BLOCK, *x.shape[2:])
        return jnp.moveaxis(x, 2, 0).reshape(blocks, batch_size, ways * QUERY_BLOCK, *x.shape[4:])

    def joined(x: Array) -> Array:
        x = x.reshape(blocks, batch_size, ways, QUERY_BLOCK, *x.shape[3:])
        return jnp.moveaxis(x, 0, 2).reshape(batch_size, length, *x.shape[4:])

    @jax.checkpoint
    def block(part: tuple[Array, Array]) -> Array:
        queries = constrain(part[0], ("batch", "length", "heads", "head_dim"), TRAINING)
        return dense_attention(queries, k, v, part[1], **form)

    return joined(jax.lax.map(block, (split(q), split(seen_at))))
