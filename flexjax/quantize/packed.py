"""Projections and tables in the form that the CPU's kernel streams; the packed arrays take the others' place."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flexjax.kernels.matmul import Packed, pack, pack_gated, packed_matmul
from flexjax.quantize.table import QuantizedTable, Table
from flexjax.quantize.weights import QuantizedWeight, Weight


@dataclasses.dataclass(frozen=True)
class Norm:
    """RMSNorm of the rows before a product, with these factors."""

    factors: Any
    eps: float


class PackedWeight(nnx.Module):
    """Projections of the same rows as one product, with the norm before it and what follows it folded in."""

    lines: nnx.Param
    scale: nnx.Param | None
    bias: nnx.Param | None
    norm: nnx.Param | None = None

    def __init__(
        self,
        weights: Sequence[Weight],
        biases: Sequence[nnx.Param | None],
        *,
        norm: Norm | None = None,
        activation: str = "none",
        gate: bool = False,
        activation_dtype: str | None = None,
    ):
        """The columns of `weights` side by side. With `gate` they are two, gates and what these multiply, and the
        result is `activation(gates) * values`."""
        parts = [(*_matrix(weight), _row(bias)) for weight, bias in zip(weights, biases, strict=True)]
        self._hold(pack_gated(*parts) if gate else pack(*_side_by_side(parts)))
        if norm is not None:
            self.norm = nnx.Param(jnp.asarray(norm.factors, jnp.float32), axes=(None,))
        self.eps = 0.0 if norm is None else norm.eps
        self.activation, self.gate = activation, gate
        self.activation_dtype = activation_dtype if self.packed.dtype in (jnp.int8, jnp.int4) else None

    def _hold(self, packed: Packed) -> None:
        for name in ("lines", "scale", "bias"):
            array = getattr(packed, name)
            setattr(self, name, None if array is None else nnx.Param(array, axes=(None,) * array.ndim))
        self.D, self.F = packed.D, packed.F

    @property
    def packed(self) -> Packed:
        scale, bias = (None if held is None else held[...] for held in (self.scale, self.bias))
        return Packed(self.lines[...], scale, bias, self.D, self.F, self.gate)

    def __call__(
        self, x: Float[Array, "T D"], *, residual: Float[Array, "T F"] | None = None, out_dtype: Any = jnp.float32
    ) -> Float[Array, "T F"]:
        """`residual` plus the product, rounded once to `out_dtype`."""
        return packed_matmul(
            x,
            self.packed,
            activation_dtype=self.activation_dtype,
            norm=None if self.norm is None else self.norm[...],
            eps=self.eps,
            activation=self.activation,
            residual=residual,
            out_dtype=out_dtype,
        )


class PackedTable(PackedWeight):
    """A [V, D] table of tokens that the last product is made with too: held once."""

    def __init__(self, table: Table, activation_dtype: str | None):
        values, scale = (table.values, table.scale) if isinstance(table, QuantizedTable) else (table, None)
        self.dtype = table.dtype
        self._hold(pack(np.asarray(values[...]).T, None if scale is None else np.asarray(scale[...])))
        self.eps, self.activation, self.gate = 0.0, "none", False
        self.activation_dtype = activation_dtype if scale is not None else None

    def rows(self, tokens: Int[Array, "*T"]) -> Float[Array, "*T D"]:
        """The vectors of tokens: one column of a panel's lines each."""
        panel, tile, column = tokens // 32, tokens % 32 // 16, tokens % 16
        found = self.lines[...][panel, :, tile, :, column].reshape(*tokens.shape, -1)[..., : self.D]
        if self.scale is None:
            return found
        scale = self.scale[...][panel, tokens % 32]
        return (found.astype(jnp.float32) * jnp.broadcast_to(scale[..., None], found.shape)).astype(self.dtype)


def _side_by_side(parts: Sequence[tuple[np.ndarray | None, ...]]) -> tuple[np.ndarray | None, ...]:
    """The values, scales and biases of weights as those of one; a bias that is missing beside another is zero."""
    values, scales, biases = zip(*parts, strict=True)
    if any(bias is not None for bias in biases):
        biases = [np.zeros(v.shape[1], np.float32) if b is None else b for v, b in zip(values, biases, strict=True)]
    join = lambda arrays: None if arrays[0] is None else np.concatenate(arrays, axis=-1)
    return join(values), join(scales), join(biases)


def _row(bias: nnx.Param | None) -> np.ndarray | None:
    return None if bias is None else np.asarray(bias[...], np.float32).reshape(-1)


def _matrix(weight: Weight) -> tuple[np.ndarray, np.ndarray | None]:
    """The [D, F] matrix of a projection, on the host, and its scales."""
    if isinstance(weight, QuantizedWeight):
        return np.asarray(weight.values[...]), np.asarray(weight.scale[...])
    inputs = math.prod(weight.shape[: weight.get_metadata("summed")])
    return np.asarray(weight[...]).reshape(inputs, -1), None
