"""The quantised matmul as plain products of JAX, for XLA to fuse: on TPU it widens int8 and float8 as it reads them."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from flexjax.kernels.matmul.layers import of_layer
from flexjax.kernels.matmul.rows import rounded_rows


def matmul(
    x: Float[Array, "T D"],
    values: Num[Array, "*L D F"],
    scale: Float[Array, "..."] | None,
    *,
    layer: Int[Array, ""] | None = None,
    activation_dtype: str | None = None,
) -> Float[Array, "T F"]:
    """The contract of `api.py`. A weight in groups is multiplied out first."""
    values, scale = of_layer(values, scale, layer)
    row_scale = None
    if activation_dtype == "int8":
        x, row_scale = rounded_rows(x)
    if scale is not None and scale.ndim == 2:
        y = _product_in_groups(x, values, scale)
    else:
        y = _product(x, values.astype(x.dtype))  # Exact.
        y = y if scale is None else y * scale[None]
    return y if row_scale is None else y * row_scale


def _product(x: Num[Array, "T D"], matrix: Num[Array, "D F"]) -> Float[Array, "T F"]:
    options: dict[str, Any] = dict(preferred_element_type=jnp.int32 if x.dtype == jnp.int8 else jnp.float32)
    if x.dtype == jnp.float32:
        options["precision"] = "highest"
    return jnp.einsum("TD,DF->TF", x, matrix, **options).astype(jnp.float32)


def _product_in_groups(
    x: Num[Array, "T D"], values: Num[Array, "D F"], scale: Float[Array, "G F"]
) -> Float[Array, "T F"]:
    """The scaled weight is float32; beside narrower rows it is the sum of two bfloat16, exact to 16 bits."""
    groups = values.reshape(scale.shape[0], -1, values.shape[1]).astype(jnp.float32) * scale[:, None]
    matrix = groups.reshape(values.shape)
    if x.dtype == jnp.float32:
        return _product(x, matrix)
    high = matrix.astype(jnp.bfloat16)
    low = (matrix - high.astype(jnp.float32)).astype(jnp.bfloat16)
    x = x.astype(jnp.bfloat16)  # Exact, of int8 too.
    return _product(x, high) + _product(x, low)
