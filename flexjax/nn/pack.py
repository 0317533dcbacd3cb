"""Projections, tables and layers as the CPU's kernel serves them: packed weights, and each norm, activation and
residual sum in the product that it stands beside. Five calls a layer, where the plain modules make a dozen.

What is packed serves on one CPU and is not trained or saved."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flexjax.hardware import memory
from flexjax.kernels.matmul import Packed, pack, pack_gated, packed_matmul
from flexjax.kernels.rotary import rotary
from flexjax.nn.attention import Attend, Attention
from flexjax.nn.embedding import Embedding
from flexjax.nn.linear import Linear
from flexjax.nn.mlp import ACTIVATIONS, MLP
from flexjax.nn.norm import Norm
from flexjax.nn.quantised import QuantizedTable, QuantizedWeight
from flexjax.nn.rope import RopeTables, rotate
from flexjax.nn.rows import add
from flexjax.refusal import Unsupported

FOLDED_ACTIVATIONS = ("silu", "gelu_tanh")


class PackedLinear(nnx.Module):
    """Projections of the same rows as one product, with the norm before it and what follows it folded in."""

    lines: nnx.Param
    scale: nnx.Param | None
    bias: nnx.Param | None
    norm: nnx.Param | None

    def __init__(
        self,
        packed: Packed,
        *,
        norm: Norm | None = None,
        activation: str = "none",
        activation_dtype: str | None = None,
    ):
        """`norm` is one that `_folds`; `activation_dtype` rounds the rows of a product with integers."""
        for name in ("lines", "scale", "bias"):
            array = getattr(packed, name)
            setattr(self, name, None if array is None else nnx.Param(array, axes=(None,) * array.ndim))
        self.D, self.F, self.gated = packed.D, packed.F, packed.gated
        factors = None if norm is None else norm.scale[...].astype(jnp.float32) + norm.offset
        self.norm = None if factors is None else nnx.Param(factors, axes=(None,))
        self.eps = 0.0 if norm is None else norm.eps
        self.activation = activation
        self.activation_dtype = activation_dtype if packed.dtype in (jnp.int8, jnp.int4) else None

    @property
    def packed(self) -> Packed:
        scale, bias = (None if held is None else held[...] for held in (self.scale, self.bias))
        return Packed(self.lines[...], scale, bias, self.D, self.F, self.gated)

    def __call__(
        self, x: Float[Array, "*T D"], *, residual: Float[Array, "*T F"] | None = None, out_dtype: Any = jnp.float32
    ) -> Float[Array, "*T F"]:
        """`residual` plus the product, rounded once to `out_dtype`."""
        y = packed_matmul(
            _rows(x),
            self.packed,
            activation_dtype=self.activation_dtype,
            norm=None if self.norm is None else self.norm[...],
            eps=self.eps,
            activation=self.activation,
            residual=None if residual is None else _rows(residual),
            out_dtype=out_dtype,
        )
        return y.reshape(*x.shape[:-1], -1)


def together(*linears: Linear, gate: bool = False, **around: Any) -> PackedLinear:
    """The columns of `linears` side by side. With `gate` they are two, gates and what these multiply, and the result is
    `activation(gates) * values`. `around` is as `PackedLinear` has it."""
    parts = [(*_matrix(linear), _row(linear.bias)) for linear in linears]
    return PackedLinear(pack_gated(*parts) if gate else pack(*_side_by_side(parts)), **around)


class PackedEmbedding(nnx.Module):
    """A [V, D] table of tokens that the last product is made with too: held once."""

    def __init__(self, embedding: Embedding, activation_dtype: str | None):
        table = embedding.table
        values, scale = (table.values, table.scale) if isinstance(table, QuantizedTable) else (table, None)
        packed = pack(np.asarray(values[...]).T, None if scale is None else np.asarray(scale[...]))
        self.product = PackedLinear(packed, activation_dtype=None if scale is None else activation_dtype)
        self.dtype = table.dtype

    def __call__(self, tokens: Int[Array, "*T"]) -> Float[Array, "*T D"]:
        """The vectors of tokens: one column of a panel's lines each."""
        panel, tile, column = tokens // 32, tokens % 32 // 16, tokens % 16
        lines, scale = self.product.lines, self.product.scale
        found = lines[...][panel, :, tile, :, column].reshape(*tokens.shape, -1)[..., : self.product.D]
        if scale is None:
            return found
        scales = scale[...][panel, tokens % 32]
        return (found.astype(jnp.float32) * jnp.broadcast_to(scales[..., None], found.shape)).astype(self.dtype)

    def logits(self, hidden: Float[Array, "*T D"]) -> Float[Array, "*T V"]:
        """The product of rows with every vector, float32."""
        return self.product(hidden)


def _side_by_side(parts: Sequence[tuple[np.ndarray | None, ...]]) -> tuple[np.ndarray | None, ...]:
    """The values, scales and biases of weights as those of one; a bias that is missing beside another is zero."""
    values, scales, biases = zip(*parts, strict=True)
    if any(bias is not None for bias in biases):
        biases = [np.zeros(v.shape[1], np.float32) if b is None else b for v, b in zip(values, biases, strict=True)]
    join = lambda arrays: None if arrays[0] is None else np.concatenate(arrays, axis=-1)
    return join(values), join(scales), join(biases)


def _row(bias: nnx.Param | None) -> np.ndarray | None:
    return None if bias is None else np.asarray(bias[...], np.float32).reshape(-1)


def _matrix(linear: Linear) -> tuple[np.ndarray, np.ndarray | None]:
    """The [D, F] matrix of a projection, on the host, and its scales."""
    weight = linear.weight
    if isinstance(weight, QuantizedWeight):
        if weight.zero is not None:
            raise Unsupported("Weights with zero points are not packed for the CPU's kernels. Round them without.")
        return np.asarray(weight.values[...]), np.asarray(weight.scale[...])
    return np.asarray(weight[...]).reshape(math.prod(weight.shape[: linear.summed]), -1), None


def _rows(x: Float[Array, "*T D"]) -> Float[Array, "T D"]:
    return x.reshape(-1, x.shape[-1])


def _folds(norm: Norm) -> bool:
    """Whether the product takes the norm over: an RMSNorm; a LayerNorm it leaves where it is."""
    return norm.kind == "rms"


class PackedAttention(nnx.Module):
    """`x + post_norm(attention(norm(x)))` in three calls: queries, keys and values; attention; out."""

    def __init__(self, norm: Norm, attention: Attention, post_norm: Norm | None, activation_dtype: str | None):
        query, key = attention.query.outputs, attention.key.outputs
        self.heads, self.head_dim = (query[0], key[0]), query[1]
        self.norm = None if _folds(norm) else norm
        self.qkv = together(
            attention.query,
            attention.key,
            attention.value,
            norm=norm if _folds(norm) else None,
            activation_dtype=activation_dtype,
        )
        self.query_norm, self.key_norm = attention.query_norm, attention.key_norm
        self.out = together(attention.out, activation_dtype=activation_dtype)
        self.post_norm = post_norm

    def __call__(self, x: Float[Array, "*T D"], tables: RopeTables, attend: Attend) -> tuple[Array, Any]:
        *leading, D = x.shape
        rows = x.reshape(-1, D)
        parts = self._projections(rows, tables, leading)
        mixed, cache = attend(*(part.reshape(*leading, *part.shape[1:]) for part in parts))
        return _added(rows, mixed.reshape(rows.shape[0], -1), self.out, self.post_norm).reshape(x.shape), cache

    def _projections(self, rows: Float[Array, "T D"], tables: RopeTables, leading: list[int]) -> tuple[Array, ...]:
        """Queries, keys and values in the dtype of the rows, the first two turned."""
        qkv = self.qkv(rows if self.norm is None else self.norm(rows))
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


class PackedMLP(nnx.Module):
    """`x + post_norm(mlp(norm(x)))` in two calls: gates and up; down."""

    def __init__(self, norm: Norm, mlp: MLP, post_norm: Norm | None, activation_dtype: str | None):
        self.norm = None if _folds(norm) else norm
        self.gated, self.activation = mlp.gate is not None, mlp.activation
        folded = mlp.activation in FOLDED_ACTIVATIONS
        self.left = None if folded else mlp.activation  # Left to XLA.
        self.into = together(
            *([mlp.up] if mlp.gate is None else [mlp.gate, mlp.up]),
            norm=norm if _folds(norm) else None,
            activation=mlp.activation if folded else "none",
            gate=folded and self.gated,
            activation_dtype=activation_dtype,
        )
        self.down = together(mlp.down, activation_dtype=activation_dtype)
        self.post_norm = post_norm

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
        rows = _rows(x)
        return _added(rows, self._hidden(rows), self.down, self.post_norm).reshape(x.shape)

    def _hidden(self, rows: Float[Array, "T D"]) -> Float[Array, "T F"]:
        normed = rows if self.norm is None else self.norm(rows)
        if self.left is None:
            return self.into(normed, out_dtype=rows.dtype)
        act, hidden = ACTIVATIONS[self.left], self.into(normed)
        if not self.gated:
            return act(hidden).astype(rows.dtype)
        gates, values = jnp.split(hidden, 2, axis=-1)
        return (act(gates) * values).astype(rows.dtype)


def _added(rows: Array, x: Array, linear: PackedLinear, norm: Norm | None) -> Array:
    """The residual sum, within the product where nothing stands between."""
    if norm is None:
        return linear(x, residual=rows, out_dtype=rows.dtype)
    return add(rows, norm(linear(x)))


def free(plain: nnx.Module, packed: nnx.Module) -> None:
    """Deletes the arrays of the one that the other does not share."""
    kept = jax.block_until_ready(jax.tree.leaves(nnx.state(packed)))  # Until then the others are still read.
    shared = {id(array) for array in kept}
    for array in jax.tree.leaves(nnx.state(plain)):
        if id(array) not in shared:
            array.delete()
    memory.trim()  # Or the heap keeps what was freed, since what comes next has other sizes.
