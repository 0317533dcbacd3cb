"""A table of tokens in int8: what they are looked up in, and where it is tied, what the logits are made with."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Int8, Shaped


class QuantizedTable(nnx.Module):
    """A [V, D] table, about `values * scale`, with one scale a token: an output channel of the last product."""

    def __init__(self, table: nnx.Param):
        axes = table.get_metadata("axes")
        values, scale = _round(table[...])
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


@jax.jit  # In one pass over the table, with nothing beside it.
def _round(table: Float[Array, "V D"]) -> tuple[Int8[Array, "V D"], Float[Array, "V"]]:
    wide = table.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=1) / 127
    scale = jnp.where(scale > 0, scale, 1.0)
    return jnp.round(wide / jnp.broadcast_to(scale[:, None], wide.shape)).astype(jnp.int8), scale


Table = nnx.Param | QuantizedTable


def table_operand(table: Table, dtype: Any) -> tuple[Shaped[Array, "V D"], Float[Array, "V"] | None]:
    """The table as the matrix of a product, and the scale of its output channels; None scales nothing."""
    if isinstance(table, QuantizedTable):
        return table.values[...].astype(dtype), table.scale[...]
    return table[...], None
