"""Projections in int8 or int4, rounded to nearest, with float32 scales.

A model declares which of its parameters are projections: their metadata has `summed`, the number of leading axes
that the product sums over. Everything else (tables, norms, biases) keeps its dtype.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flexjax.kernels.matmul import matmul
from flexjax.model import set_parameter
from flexjax.quantize.table import QuantizedTable
from flexjax.refusal import Refusal


@dataclasses.dataclass(frozen=True)
class Format:
    """Integers of `bits`; `group` summed elements share a scale, all of an output channel where it is None."""

    dtype: Any
    bits: int
    group: int | None

    @property
    def largest(self) -> int:
        return 2 ** (self.bits - 1) - 1  # The range is symmetric: the lowest integer is not used.


FORMATS = {"int8": Format(jnp.int8, 8, None), "int4": Format(jnp.int4, 4, 32)}


class QuantizedWeight(nnx.Module):
    """One projection: the weight is about `values * scale`, within half a scale everywhere.

    Invariants: `values` is the weight as the matrix that it is multiplied as, its summed axes flattened into one and
    its output axes into another. `scale` has the latter; before it, in a format with groups, one axis of these. In a
    loop over layers both are stacks with a leading axis, and `layer` says which of them this is.
    """

    layer: Int[Array, ""] | None

    def __init__(self, weight: nnx.Param, name: str):
        form, summed, axes = FORMATS[name], weight.get_metadata("summed"), weight.get_metadata("axes")
        inputs, outputs = math.prod(weight.shape[:summed]), weight.shape[summed:]
        group = inputs if form.group is None else form.group
        if inputs % group:
            raise Refusal(
                f"{name} weights share a scale in groups of {group}; the {inputs} summed elements of a weight "
                f"{list(weight.shape)} {axes} do not divide. Choose int8, which has one scale a channel."
            )
        values, scale = _round(weight[...].reshape(inputs // group, group, -1), form)
        self.outputs, self.axes, self.layer = outputs, (axes[0], axes[summed]), None
        self.values = nnx.Param(values.reshape(inputs, -1), axes=self.axes)
        grouped = form.group is not None
        self.scale = nnx.Param(scale if grouped else scale[0], axes=self.axes if grouped else self.axes[1:])

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "..."]:
        """`x @ weight`, float32, with the weight's output axes; on a mesh by the parts of the weight."""
        rows = x.reshape(-1, x.shape[-1])
        y = matmul(rows, self.values[...], self.scale[...], axes=self.axes, layer=self.layer)
        return y.reshape(*x.shape[:-1], *self.outputs)


Weight = nnx.Param | QuantizedWeight


def rounded(parameter: nnx.Param, name: str) -> "nnx.Param | QuantizedWeight | QuantizedTable":
    """What stands for the parameter in a model whose weights are in the format of that name: a projection in it, a
    table that the logits are made with too (`tied` in its metadata) in int8 in every format, anything else itself."""
    if name not in FORMATS:
        raise Refusal(f"Weights can be rounded to {' or '.join(FORMATS)}; got {name!r}.")
    metadata = parameter.get_metadata()
    if "summed" in metadata:
        return QuantizedWeight(parameter, name)
    return QuantizedTable(parameter) if metadata.get("tied") else parameter


def quantize_weights[T](model: T, name: str) -> T:
    """The model itself with its weights `rounded` to the format of that name, one after the other: no second copy."""
    left = list(nnx.to_flat_state(nnx.state(model)))[::-1]
    while left:  # What is done with is held no longer.
        path, parameter = left.pop()
        set_parameter(model, path, rounded(parameter, name))
    return model


@functools.partial(jax.jit, static_argnums=1)  # In one pass over the weight, with nothing beside it.
def _round(groups: Float[Array, "G I O"], form: Format) -> tuple[Array, Float[Array, "G O"]]:
    """Integers, and the scale that puts the largest of each group at the end of their range."""
    groups = groups.astype(jnp.float32)
    scale = jnp.max(jnp.abs(groups), axis=1, keepdims=True) / form.largest
    scale = jnp.where(scale > 0, scale, 1.0)
    return jnp.round(groups / scale).astype(form.dtype), scale[:, 0]
