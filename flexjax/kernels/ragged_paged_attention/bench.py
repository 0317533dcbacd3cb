"""What is timed of ragged paged attention: every body on the named shapes, as a model makes the calls."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from flexjax.kernels import registry
from flexjax.kernels.case import Case
from flexjax.kernels.ragged_paged_attention.api import ANYWHERE, BODIES, OP, ORDER, ragged_paged_attention
from flexjax.kernels.ragged_paged_attention.arg_specs import ARG_SPECS, SHIPPED, ArgSpec, decode

LAYERS = 8  # Calls of a step, each with pages of its own, so that they come from memory.

# What configs/bench_cpu.py calls M and S.
BENCH_M = functools.partial(ArgSpec, N=12, K=4, H=64, page_size=16, dtype="bfloat16")
BENCH_S = functools.partial(ArgSpec, N=6, K=6, H=48, page_size=16, dtype="bfloat16")

SERVING_SPECS: dict[str, ArgSpec] = {
    **{
        f"shipped_decode_{B}_{dtype}": SHIPPED(sequences=decode(B, 256), dtype=dtype)
        for dtype in ("float32", "bfloat16")
        for B in (1, 4, 16, 32)
    },
    **{
        f"shipped_prefill_{T}_{dtype}": SHIPPED(sequences=((T, T),), dtype=dtype)
        for dtype in ("float32", "bfloat16")
        for T in (256, 512)
    },
    **{f"m_decode_{B}": BENCH_M(sequences=decode(B, 192)) for B in (1, 16, 32)},
    "m_prefill_1024": BENCH_M(sequences=((1024, 1024),)),
    "m_mixed_2048": BENCH_M(sequences=((256, 2048), *decode(16, 1024))),
    "s_decode_1": BENCH_S(sequences=decode(1, 192)),
    **{f"long_4096_{dtype}": SHIPPED(sequences=((1, 4096),), dtype=dtype) for dtype in ("float32", "bfloat16")},
}


def cases() -> Iterator[Case]:
    """One for each shape and body of this platform."""
    for shape, spec in {**SERVING_SPECS, **ARG_SPECS}.items():
        for body in ORDER.get(registry.platform(), ANYWHERE):
            assert body in BODIES
            yield Case(
                OP,
                shape,
                body,
                functools.partial(_arguments, spec),
                functools.partial(_step, spec=spec, body=body),
                moved_bytes=spec.read_bytes,
                operations=2 * spec.products,
                dtype=spec.dtype,
                calls=LAYERS,
            )


def _arguments(spec: ArgSpec) -> tuple:
    q, k, v, pages, *batch = spec.arguments()
    return (q, [jax.tree.map(jnp.copy, pages) for _ in range(LAYERS)]), k, v, *batch


def _step(state: tuple[jax.Array, list[jax.Array]], k, v, *batch, spec: ArgSpec, body: str):
    q, cache = state
    updated = []
    for layer in cache:
        q, layer = ragged_paged_attention(q, k, v, layer, *batch, body=body, **spec.options)
        updated.append(layer)
    return q, updated
