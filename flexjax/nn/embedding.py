"""A table of vectors: looked up by tokens, and where it is tied, what the logits are made with."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flexjax.nn.precision import Precision, product
from flexjax.nn.quantised import QuantizedTable, table_operand
from flexjax.nn.rows import beside, looked_up


class Embedding(nnx.Module):
    """A `[V, D]` table, which may be in fewer bits (`QuantizedTable`)."""

    table: nnx.Param | QuantizedTable
    precision: Precision = "float32"

    def __init__(self, table: nnx.Param):
        """`table` has the metadata `axes`, and `tied` where the last product is made with it too."""
        self.table, self.precision = table, "float32"

    @property
    def dtype(self) -> jnp.dtype:
        """Of the vectors."""
        return self.table.dtype

    def __call__(self, tokens: Int[Array, "*T"]) -> Float[Array, "*T D"]:
        table = self.table
        return table.rows(tokens) if isinstance(table, QuantizedTable) else looked_up(table[...], tokens)

    def logits(self, hidden: Float[Array, "*T D"]) -> Float[Array, "*T V"]:
        """The product of rows with every vector, float32."""
        hidden = beside(hidden, self.table, axis=1)
        table, scale = table_operand(self.table, hidden.dtype)
        logits = product(hidden, table, self.precision, transposed=True)
        return logits if scale is None else logits * jnp.broadcast_to(scale, logits.shape)
