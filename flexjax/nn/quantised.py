"""Projections and tables in fewer bits, as the modules that stand in a weight's place.

A model declares which of its parameters are projections: their metadata has `summed`, the number of leading axes
that the product sums over. A table that the last product is made with too has `tied`. Everything else (other tables,
norms, biases) keeps its dtype.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from flexjax.kernels.matmul import matmul
from flexjax.model import set_parameter
from flexjax.quantize import Quantized, format_named, rounded, rounded_table


class QuantizedWeight(nnx.Module):
    """One projection, in the place of its parameter.

    Invariants: `values` is the weight as the matrix that it is multiplied as, its summed axes flattened into one and
    its output axes into another. `scale` and `zero` have the latter; before it, in a format with groups, one axis of
    these. In a loop over layers all are stacks with a leading axis, and `layer` says which of them this is.
    """

    layer: Int[Array, ""] | None
    zero: nnx.Param | None

    def __init__(self, held: Quantized, axes: tuple[str, str], outputs: Sequence[int]):
        """`axes` are the logical names of the matrix's two, `outputs` the sizes that its columns are unflattened to."""
        self.outputs, self.axes, self.layer = tuple(outputs), axes, None
        of_scale = axes if held.grouped else axes[1:]
        self.values, self.scale = nnx.Param(held.values, axes=axes), nnx.Param(held.scale, axes=of_scale)
        self.zero = None if held.zero is None else nnx.Param(held.zero, axes=of_scale)

    @classmethod
    def of(cls, weight: nnx.Param, name: str) -> "QuantizedWeight":
        """The weight rounded to the format of that name."""
        summed, axes = weight.get_metadata("summed"), weight.get_metadata("axes")
        matrix = weight[...].reshape(math.prod(weight.shape[:summed]), -1)
        return cls(rounded(matrix, name), (axes[0], axes[summed]), weight.shape[summed:])

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "..."]:
        """`x @ weight`, float32, with the weight's output axes; on a mesh by the parts of the weight."""
        rows = x.reshape(-1, x.shape[-1])
        y = matmul(rows, self.values[...], self.scale[...], axes=self.axes, layer=self.layer)
        if self.zero is not None:
            y = y - self._of_zeros(rows, self.zero)
        return y.reshape(*x.shape[:-1], *self.outputs)

    def _of_zeros(self, rows: Float[Array, "T D"], zero: nnx.Param) -> Float[Array, "T F"]:
        """What the zero points add to a product of the values alone: each group's rows summed, times these."""
        shift = zero[...] * self.scale[...]
        shift = shift if self.layer is None else shift[self.layer]
        shift = shift.reshape(-1, shift.shape[-1])
        sums = rows.astype(jnp.float32).reshape(len(rows), len(shift), -1).sum(axis=-1)
        return jnp.einsum("TG,GF->TF", sums, shift, precision="highest")


class QuantizedTable(nnx.Module):
    """A [V, D] table in int8, about `values * scale`, with one scale a token: an output channel of the last product."""

    def __init__(self, table: nnx.Param):
        axes = table.get_metadata("axes")
        values, scale = rounded_table(table[...])
        self.values, self.scale = nnx.Param(values, axes=axes), nnx.Param(scale, axes=axes[:1])
        self.dtype = table.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return self.values.ndim

    def get_metadata(self, name: str) -> Any:
        return self.values.get_metadata(name)

    def rows(self, tokens: Int[Array, "*T"]) -> Float[Array, "*T D"]:
        found = self.values[...][tokens].astype(jnp.float32)
        return (found * jnp.broadcast_to(self.scale[...][tokens][..., None], found.shape)).astype(self.dtype)


def table_operand(table: nnx.Param | QuantizedTable, dtype: Any) -> tuple[Shaped[Array, "V D"], Any]:
    """The table as the matrix of a product, and the scale of its output channels; None scales nothing."""
    if isinstance(table, QuantizedTable):
        return table.values[...].astype(dtype), table.scale[...]
    return table[...], None


def quantized(parameter: nnx.Param, name: str) -> "nnx.Param | QuantizedWeight | QuantizedTable":
    """What stands for the parameter in a model whose weights are in the format of that name: a projection in it, a
    tied table in int8 in every format, anything else itself."""
    format_named(name)
    metadata = parameter.get_metadata()
    if "summed" in metadata:
        return QuantizedWeight.of(parameter, name)
    return QuantizedTable(parameter) if metadata.get("tied") else parameter


def quantize_weights[T](model: T, name: str) -> T:
    """The model itself with its weights `quantized` to the format of that name, one after the other: no second copy."""
    left = list(nnx.to_flat_state(nnx.state(model)))[::-1]
    while left:  # What is done with is held no longer.
        path, parameter = left.pop()
        set_parameter(model, path, quantized(parameter, name))
    return model
