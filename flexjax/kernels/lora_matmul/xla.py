"""Gathered LoRA matmul in plain JAX that runs anywhere: every adapter in use for every row, of which it keeps its own.

The products are as many times those that are needed, and small.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flexjax.kernels.lora_matmul.rows import AdapterRows


def lora_matmul(
    y: Float[Array, "T F"],
    x: Float[Array, "T D"],
    a: Float[Array, "A R D"],
    b: Float[Array, "A R F"],
    rows: AdapterRows,
) -> Float[Array, "T F"]:
    """The contract of `api.py`."""
    options: dict[str, Any] = dict(precision="highest", preferred_element_type=jnp.float32)
    h = jnp.einsum("TD,URD->TUR", x, a[rows.used], **options)
    own = rows.slot[:, None] == jnp.arange(rows.used.shape[0], dtype=jnp.int32)[None]
    h = jnp.where(own[:, :, None], h, 0.0).astype(x.dtype)
    return y + jnp.einsum("TUR,URF->TF", h, b[rows.used], **options)
