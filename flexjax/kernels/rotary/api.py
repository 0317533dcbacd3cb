"""The rotary cut: the contract, and which body serves it."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flexjax.kernels import registry
from flexjax.kernels.rotary import base, cpu

OP = "rotary"
BODIES = {"xla": base.rotary, "cpu": cpu.rotary}  # The formula is whole arrays, which XLA fuses.
ORDER = {"cpu": ("cpu", "xla")}
ANYWHERE = ("xla",)


def rotary(
    x: Float[Array, "T C"],
    cos: Float[Array, "T half"],
    sin: Float[Array, "T half"],
    *,
    num_heads: int,
    num_kv_heads: int,
    dtype: Any,
    body: str | None = None,
) -> tuple[Float[Array, "T N H"], Float[Array, "T K H"], Float[Array, "T K H"]]:
    """Queries, keys and values that lie side by side in `x`, C = (N + 2 K) * H, with the first two turned by their
    positions (Su et al. 2021, arXiv:2104.09864, half-split as in Hugging Face checkpoints).

    Dimensions i and i + H/2 of each head of a row become `first * cos - second * sin` and
    `second * cos + first * sin`, in float32 and rounded once to `dtype`.

    Args:
      x: float32.
      cos, sin: of each row's angles, H/2 each, float32.
      num_heads: N, of queries.
      num_kv_heads: K.
      body: exactly this one of `BODIES`; by default the environment's, else the first that can serve.

    Raises:
      ValueError: shapes or dtypes that do not fit each other.
      NotImplementedError: the body asked for does not serve the call.
    """
    T, half = cos.shape
    want = (T, (num_heads + 2 * num_kv_heads) * 2 * half)
    if x.shape != want or sin.shape != cos.shape:
        raise ValueError(
            f"Of {num_heads} heads of queries and {num_kv_heads} of keys and values, with cosines {cos.shape}, x must "
            f"be {want} and sines like cosines; got x {x.shape}, sines {sin.shape}."
        )
    if any(array.dtype != jnp.float32 for array in (x, cos, sin)):
        raise ValueError(f"x, cosines and sines must be float32; got {x.dtype}, {cos.dtype}, {sin.dtype}.")
    options = dict(num_heads=num_heads, num_kv_heads=num_kv_heads, dtype=jnp.dtype(dtype))
    return registry.serve(OP, BODIES, ORDER.get(registry.platform(), ANYWHERE), body, x, cos, sin, **options)
