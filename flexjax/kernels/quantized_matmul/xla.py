"""The quantised matmul as plain products of JAX, for XLA to fuse: on TPU it widens int8 and float8 as it reads them."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from flexjax.kernels.quantized_matmul.rows import rounded_rows


def quantized_matmul(
    x: Float[Array, "T D"],
    values: Num[Array, "D F"],
    scale: Float[Array, "*G F"] | None,
    *,
    activation_dtype: str | None = None,
) -> Float[Array, "T F"]:
    """The contract of `api.py`. Of groups it makes a product each, whose sums are held side by side."""
    row_scale = None
    if activation_dtype == "int8":
        x, row_scale = rounded_rows(x)
    options: dict[str, Any] = dict(preferred_element_type=jnp.int32 if x.dtype == jnp.int8 else jnp.float32)
    if x.dtype == jnp.float32:
        options["precision"] = "highest"
    values = values.astype(x.dtype)  # Exact.
    if scale is None:
        return jnp.einsum("TD,DF->TF", x, values, **options)
    if scale.ndim == 1:
        y = jnp.einsum("TD,DF->TF", x, values, **options).astype(jnp.float32) * scale[None]
    else:
        G, F = scale.shape
        groups = jnp.einsum("TGD,GDF->GTF", x.reshape(x.shape[0], G, -1), values.reshape(G, -1, F), **options)
        y = jnp.sum(groups.astype(jnp.float32) * scale[:, None], axis=0)
    return y if row_scale is None else y * row_scale
