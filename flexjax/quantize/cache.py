"""The scale of an int8 cache."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from flexjax.causal_lm import CausalLM, zeros

MARGIN = 1.5  # Above the largest that was seen, before keys and values are clipped.


def cache_scale(model: CausalLM, length: int = 64, seed: int = 0) -> float:
    """The scale at which the largest key or value that the model makes of `length` random tokens, with a margin
    above, is the largest int8; one for all layers, keys and values alike."""
    length = min(length, model.config.max_position)
    tokens = np.random.default_rng(seed).integers(0, model.config.vocab_size, (1, length))
    positions = np.arange(length, dtype=np.int32)[None]
    empty = zeros(model.dense_cache_spec(1, length, jnp.float32))
    graph, state = nnx.split(model)

    @nnx.jit
    def largest(state):
        _, cache = nnx.merge(graph, state).dense(jnp.asarray(tokens, jnp.int32), jnp.asarray(positions), empty)
        return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in cache or ()]))

    return MARGIN * float(largest(state)) / 127
