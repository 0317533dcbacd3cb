"""The formula of the quantised matmul in plain JAX."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped


def matmul(
    x: Float[Array, "T D"],
    values: Shaped[Array, "*L D F"],
    scale: Float[Array, "..."] | None,
    *,
    layer: Int[Array, ""] | None = None,
    activation_dtype: str | None = None,
) -> Float[Array, "T F"]:
    """`x @ (values * scale)`; `api.py` states the contract."""
    if layer is not None:
        values, scale = values[layer], None if scale is None else scale[layer]
    (T, D), F = x.shape, values.shape[1]
    groups = 1 if scale is None else scale.size // F
    x = x.astype(jnp.float32)
    row_scale, summed = None, jnp.dtype(jnp.float32)
    if activation_dtype == "int8":
        largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
        x = jnp.round(x * jnp.where(largest > 1e-30, 127 / largest, 0.0))
        row_scale = largest * np.float32(1 / 127)
        summed = jnp.dtype(jnp.int32)
    sums = jnp.einsum(
        "TGD,GDF->GTF",
        x.reshape(T, groups, D // groups).astype(summed),
        values.astype(summed).reshape(groups, D // groups, F),
        precision="highest",
    ).astype(jnp.float32)
    if scale is not None:
        sums = sums * jnp.broadcast_to(scale.reshape(groups, 1, F), sums.shape)
    y = jnp.sum(sums, axis=0)
    return y if row_scale is None else y * row_scale
