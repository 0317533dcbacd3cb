"""Rows rounded to int8, as the quantised matmul multiplies them when it is asked to."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rounded_rows(x: Float[Array, "T D"]) -> tuple[Int[Array, "T D"], Float[Array, "T 1"]]:
    """int8 rows, and the scale of each: its largest magnitude is 127 of them."""
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    return jnp.round(x * jnp.where(largest > 0, 127 / largest, 0.0)).astype(jnp.int8), largest * np.float32(1 / 127)
