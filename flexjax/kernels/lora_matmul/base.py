"""The formula of the gathered LoRA matmul in plain JAX: one row at a time."""

import jax
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
    """`y` with every row's own change added; `api.py` states the contract."""

    def row(arguments):
        y_F, x_D, i = arguments
        h_R = jnp.einsum("RD,D->R", a[i], x_D, precision="highest", preferred_element_type=jnp.float32).astype(x.dtype)
        change_F = jnp.einsum("R,RF->F", h_R, b[i], precision="highest", preferred_element_type=jnp.float32)
        return jnp.where(i < 0, y_F, y_F + change_F)

    return jax.lax.map(row, (y, x, rows.adapter))
