"""The one place where rows meet a weight."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flexjax.nn.precision import Precision, product
from flexjax.nn.quantised import QuantizedWeight
from flexjax.nn.rows import beside

Weight = nnx.Param | QuantizedWeight


class Linear(nnx.Module):
    """`x @ weight + bias` over the first `summed` axes of a `[inputs…, outputs…]` weight, float32.

    A caller asks for the product and never for the weight, which may be in fewer bits (`QuantizedWeight`). A technique
    that changes a product gives another module with this call.
    """

    weight: Weight
    precision: Precision = "float32"  # Of float32 operands; training sets it (`with_precision`).

    def __init__(self, weight: nnx.Param, bias: nnx.Param | None = None):
        """`weight` has the metadata `axes`, a logical name a dimension, and `summed`."""
        self.weight, self.bias = weight, bias
        self.summed = weight.get_metadata("summed")
        self.precision = "float32"

    @property
    def outputs(self) -> tuple[int, ...]:
        """Sizes of the output axes."""
        weight = self.weight
        return weight.outputs if isinstance(weight, QuantizedWeight) else weight.shape[self.summed :]

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`[*T, inputs…]` → `[*T, outputs…]`. What follows (activation, rope, residual) is computed in float32, so the
        result stays there."""
        x = x.reshape(*x.shape[: x.ndim - self.summed], -1)
        y = self.weight(x) if isinstance(self.weight, QuantizedWeight) else self._plain(x, self.weight)
        return y if self.bias is None else y + jnp.broadcast_to(self.bias[...].astype(jnp.float32), y.shape)

    def _plain(self, x: Float[Array, "*T D"], weight: nnx.Param) -> Float[Array, "..."]:
        """The dot is two-dimensional: with two output axes XLA's CPU backend takes twice the time."""
        if self.summed == 1:
            x = beside(x, weight, axis=0)
        matrix = weight[...].reshape(math.prod(weight.shape[: self.summed]), -1)
        return product(x, matrix, self.precision).reshape(*x.shape[:-1], *weight.shape[self.summed :])
