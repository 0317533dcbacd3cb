"""What is timed of ragged paged attention: every body on the named shapes, as a model makes the calls."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from flexjax.kernels.case import Case, each
from flexjax.kernels.ragged_paged_attention.api import ANYWHERE, OP, ORDER, ragged_paged_attention
from flexjax.kernels.ragged_paged_attention.arg_specs import ARG_SPECS, SERVING_SPECS, ArgSpec

LAYERS = 8  # Calls of a step, each with pages of its own, so that they come from memory.


def cases() -> Iterator[Case]:
    return each({**SERVING_SPECS, **ARG_SPECS}, ORDER, ANYWHERE, case)


def case(shape: str, spec: ArgSpec, body: str, calls: int = LAYERS) -> Case:
    def make():
        q, k, v, pages, *batch = spec.arguments()
        return (q, [jax.tree.map(jnp.copy, pages) for _ in range(calls)]), k, v, *batch

    def step(state, k, v, *batch):
        q, cache = state
        updated = []
        for layer in cache:
            q, layer = ragged_paged_attention(q, k, v, layer, *batch, body=body, **spec.options)
            updated.append(layer)
        return q, updated

    return Case(OP, shape, body, make, step, spec.read_bytes, 2 * spec.products, spec.dtype, calls)
