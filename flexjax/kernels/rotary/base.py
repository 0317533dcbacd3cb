"""The formula of the rotary cut in plain JAX, which is also the body that runs anywhere."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def rotary(
    x: Float[Array, "T C"],
    cos: Float[Array, "T half"],
    sin: Float[Array, "T half"],
    *,
    num_heads: int,
    num_kv_heads: int,
    dtype: Any,
) -> tuple[Float[Array, "T N H"], Float[Array, "T K H"], Float[Array, "T K H"]]:
    """The contract of `api.py`."""
    rows = x.reshape(x.shape[0], num_heads + 2 * num_kv_heads, 2 * cos.shape[1])
    turned, v = jnp.split(rows, [num_heads + num_kv_heads], axis=1)
    first, second = jnp.split(turned, 2, axis=2)
    cos, sin = cos[:, None], sin[:, None]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=2)
    q, k = jnp.split(turned, [num_heads], axis=1)
    return q.astype(dtype), k.astype(dtype), v.astype(dtype)
