"""Top-k, top-p and min-p in plain JAX that runs anywhere: by bisection, each halving a pass over the logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def sample_top(
    logits: Float[Array, "B V"], top_k: Int[Array, "B"], top_p: Float[Array, "B"], min_p: Float[Array, "B"]
) -> Float[Array, "B"]:
    """The contract of `api.py`."""
    V = logits.shape[1]
    k = jnp.where(top_k > 0, jnp.minimum(top_k, V), V)
    kept = lambda limit: logits >= limit[:, None]
    limit = largest(logits.shape[:1], lambda t: jnp.sum(kept(t), axis=-1) >= k)
    weights = jnp.where(kept(limit), jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)), 0.0)
    wanted = top_p * jnp.sum(weights, axis=-1)
    nucleus = largest(logits.shape[:1], lambda t: jnp.sum(jnp.where(kept(t), weights, 0.0), axis=-1) >= wanted)
    limit = jnp.where(top_p < 1, jnp.maximum(limit, nucleus), limit)
    return jnp.maximum(limit, jnp.max(logits, axis=-1) + jnp.log(min_p))  # log 0 keeps all.


def largest(shape: tuple[int, ...], holds: Callable[[Array], Bool[Array, "..."]]) -> Float[Array, "..."]:
    """The largest float32 t of each row with `holds(t)`, which holds for small t and fails for large.

    Bisection over the order-preserving integer image of float32: exact after 32 halvings, and no sort.
    """
    low = jnp.full(shape, -0x7F800000, jnp.int32)  # The image of -inf.
    high = jnp.full(shape, 0x7F800000, jnp.int32)

    def halve(_, bounds):
        low, high = bounds
        middle = (low | high) - ((low ^ high) >> 1)  # The mean rounded up, without overflow.
        ok = holds(as_float(middle))
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle - 1)

    low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return as_float(low)


def as_float(i: Int[Array, "..."]) -> Float[Array, "..."]:
    """The float32 at this place in their order, 0 being zero."""
    return jax.lax.bitcast_convert_type(jnp.where(i >= 0, i, jnp.int32(-(2**31)) - i), jnp.float32)
