"""The scale of an int8 or float8 cache, and what a cache is really held in."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flexjax.causal_lm import CausalLM, zeros
from flexjax.kernels.ragged_paged_attention import LARGEST, Int4Pages

MARGIN = 1.5  # Above the largest that was seen, before keys and values are clipped.


def cache_scale(model: CausalLM, dtype: str = "int8", length: int = 64, seed: int = 0) -> float:
    """The scale at which the largest key or value that the model makes of `length` random tokens, with a margin
    above, is the largest number of `dtype`; one for all layers, keys and values alike. Of float8 it is the next power
    of two, by which numbers are divided without an error of its own."""
    length = min(length, model.config.max_position)
    tokens = np.random.default_rng(seed).integers(0, model.config.vocab_size, (1, length))
    positions = np.arange(length, dtype=np.int32)[None]
    empty = zeros(model.dense_cache_spec(1, length, jnp.float32))
    graph, state = nnx.split(model)

    @nnx.jit
    def largest(state):
        _, cache = nnx.merge(graph, state).dense(jnp.asarray(tokens, jnp.int32), jnp.asarray(positions), empty)
        return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in cache or ()]))

    scale = MARGIN * float(largest(state)) / LARGEST[dtype]
    return scale if jnp.issubdtype(jnp.dtype(dtype), jnp.integer) else 2.0 ** math.ceil(math.log2(scale))


def cache_dtypes(cache: Any) -> set[str]:
    """The dtypes of a model's cache, read from its arrays. The scales of int4 are not counted."""
    parts = jax.tree.leaves(cache, is_leaf=lambda x: isinstance(x, Int4Pages))
    return {"int4" if isinstance(part, Int4Pages) else part.dtype.name for part in parts}
