"""One layer's weight of those that a loop over layers has stacked."""

import jax
from jaxtyping import Array, Float, Int, Shaped


def of_layer(
    values: Shaped[Array, "*L D F"], scale: Float[Array, "..."] | None, layer: Int[Array, ""] | None
) -> tuple[Shaped[Array, "D F"], Float[Array, "..."] | None]:
    """Its values and scales, as a loop over the stack would slice them; without a layer all that is given."""
    if layer is None:
        return values, scale
    take = lambda stack: jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False, allow_negative_indices=False)
    return take(values), None if scale is None else take(scale)
