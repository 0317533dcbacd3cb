"""Projections in int8 or int4, rounded to nearest, with float32 scales.

A model declares which of its parameters are projections: their metadata has `summed`, the number of leading axes
that the product sums over. Everything else (tables, norms, biases) keeps its dtype.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flexjax.kernels.quantized_matmul import quantized_matmul
from flexjax.quantize.table import QuantizedTable


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
            raise ValueError(
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
        y = quantized_matmul(rows, self.values[...], self.scale[...], axes=self.axes, layer=self.layer)
        return y.reshape(*x.shape[:-1], *self.outputs)


Weight = nnx.Param | QuantizedWeight


def quantize_weights[T](model: T, name: str) -> T:
    """The model itself with its projections in the format of that name, one after the other: no second copy. A table
    that the logits are made with too (`tied` in its metadata) becomes int8 in every format."""
    if name not in FORMATS:
        raise ValueError(f"Weights can be rounded to {' or '.join(FORMATS)}; got {name!r}.")
    for path, parameter in nnx.to_flat_state(nnx.state(model)):
        metadata = parameter.get_metadata()
        if "summed" in metadata or metadata.get("tied"):
            holder: Any = model
            for part in path[:-1]:
                holder = holder[part] if isinstance(part, int) else getattr(holder, str(part))
            projection = "summed" in metadata
            setattr(
                holder, str(path[-1]), QuantizedWeight(parameter, name) if projection else QuantizedTable(parameter)
            )
    return model


def _round(groups: Float[Array, "G I O"], form: Format) -> tuple[Array, Float[Array, "G O"]]:
    """Integers, and the scale that puts the largest of each group at the end of their range."""
    groups = groups.astype(jnp.float32)
    scale = jnp.max(jnp.abs(groups), axis=1, keepdims=True) / form.largest
    scale = jnp.where(scale > 0, scale, 1.0)
    return jnp.round(groups / scale).astype(form.dtype), scale[:, 0]
