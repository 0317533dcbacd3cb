"""The formula of top-k, top-p and min-p in plain JAX: everything sorted."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sample_top(
    logits: Float[Array, "B V"], top_k: Int[Array, "B"], top_p: Float[Array, "B"], min_p: Float[Array, "B"]
) -> Float[Array, "B"]:
    """The least logit that is kept; `api.py` states the contract."""

    def row(arguments):
        logits_V, k, p, floor = arguments
        falling = -jnp.sort(-logits_V)
        kth = jnp.where(k > 0, falling[jnp.clip(k, 1, falling.size) - 1], falling[-1])
        probabilities = jax.nn.softmax(jnp.where(falling >= kth, falling, -jnp.inf))
        reached = jnp.cumsum(probabilities) >= p
        nucleus = jnp.where(jnp.any(reached), falling[jnp.argmax(reached)], -jnp.inf)
        return jnp.maximum(jnp.where(p < 1, jnp.maximum(kth, nucleus), kth), falling[0] + jnp.log(floor))

    return jax.lax.map(row, (logits, top_k, top_p, min_p))
