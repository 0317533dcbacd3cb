"""A table of tokens in int8: what they are looked up in, and where it is tied, what the logits are made with."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int


class QuantizedTable(nnx.Module):
    """A [V, D] table, about `values * scale`, with one scale a token: an output channel of the last product."""

    def __init__(self, table: nnx.Param):
        axes, wide = table.get_metadata("axes"), table[...].astype(jnp.float32)
        scale = jnp.max(jnp.abs(wide), axis=1) / 127
        scale = jnp.where(scale > 0, scale, 1.0)
        self.values = nnx.Param(
            jnp.round(wide / jnp.broadcast_to(scale[:, None], wide.shape)).astype(jnp.int8), axes=axes
        )
        self.scale = nnx.Param(scale, axes=axes[:1])
        self.dtype = table.dtype

    def rows(self, tokens: Int[Array, "*T"]) -> Float[Array, "*T D"]:
        found = self.values[...][tokens].astype(jnp.float32)
        return (found * jnp.broadcast_to(self.scale[...][tokens][..., None], found.shape)).astype(self.dtype)


Table = nnx.Param | QuantizedTable


def lookup(table: Any, tokens: Int[Array, "*T"]) -> Float[Array, "*T D"]:
    """The vectors of tokens, in the model's dtype."""
    return table[...][tokens] if isinstance(table, nnx.Param) else table.rows(tokens)
