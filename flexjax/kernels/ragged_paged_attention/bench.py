"""Time of each body on the named shapes, beside what bandwidth and arithmetic of this machine allow.

    python -m flexjax.kernels.ragged_paged_attention.bench [--shapes=decode] [--bodies=cpu,xla]

A call is timed as a model makes it: eight layers inside one jitted step, each with its own pages,
all donated. Bodies take turns, round by round; the median over rounds is shown. The floor is the
larger of (keys and values read once) / read bandwidth and operations / float32 matrix peak, both
measured in the same run by XLA's own products.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flexjax.kernels.ragged_paged_attention.api import ANYWHERE, BODIES, ORDER, ragged_paged_attention
from flexjax.kernels.ragged_paged_attention.arg_specs import ARG_SPECS, SHIPPED, ArgSpec, decode

LAYERS = 8
ROUNDS = 9
ROUND_S = 0.03

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
}


def seconds_a_call(call: Callable[[], jax.Array]) -> float:
    """Mean over about `ROUND_S` of calls, each waited for."""
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < ROUND_S or not calls:
        call().block_until_ready()
        calls += 1
    return elapsed / calls


def layers_of(spec: ArgSpec, body: str) -> Callable[[], jax.Array]:
    """A step of `LAYERS` calls, compiled; it keeps its own pages."""
    q, k, v, pages, *batch = spec.arguments()

    def step(cache, q):
        updated = []
        for layer in cache:
            q, layer = ragged_paged_attention(q, k, v, layer, *batch, body=body, **spec.options)
            updated.append(layer)
        return q, updated

    cache = [pages + 0 for _ in range(LAYERS)]
    compiled = jax.jit(step, donate_argnums=0).lower(cache, q).compile()

    def call() -> jax.Array:
        nonlocal cache
        out, cache = compiled(cache, q)
        return out

    call().block_until_ready()
    return call


def read_bytes_a_second() -> float:
    matrix, row = jnp.ones((4096, 4096)), jnp.ones((1, 4096))  # 64 MiB, past the nearer caches.
    product = jax.jit(jnp.matmul).lower(row, matrix).compile()
    return matrix.nbytes / min(seconds_a_call(lambda: product(row, matrix)) for _ in range(ROUNDS))


def operations_a_second() -> float:
    matrix = jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    return 2 * 1024**3 / min(seconds_a_call(lambda: product(matrix, matrix)) for _ in range(ROUNDS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="", help="part of the names to run")
    parser.add_argument(
        "--bodies", default=",".join(ORDER.get(jax.default_backend(), ANYWHERE)), help=f"of {list(BODIES)}"
    )
    flags = parser.parse_args()

    bandwidth, peak = read_bytes_a_second(), operations_a_second()
    device = jax.devices()[0]
    print(f"{device.platform} {device.device_kind}: reads {bandwidth / 1e9:.1f} GB/s, float32 {peak / 1e9:.0f} GFLOP/s")
    print(f"{'shape':34}{'body':6}{'us a call':>10}{'KV kB':>9}{'GB/s':>7}{'GFLOP/s':>9}{'floor us':>10}{'x floor':>9}")
    for name, spec in {**SERVING_SPECS, **ARG_SPECS}.items():
        if flags.shapes not in name:
            continue
        calls = {body: layers_of(spec, body) for body in flags.bodies.split(",")}
        rounds = [{body: seconds_a_call(call) / LAYERS for body, call in calls.items()} for _ in range(ROUNDS)]
        floor = max(spec.read_bytes / bandwidth, 2 * spec.products / peak)
        for body in calls:
            s = statistics.median(times[body] for times in rounds)
            print(
                f"{name:34}{body:6}{s * 1e6:10.1f}{spec.read_bytes / 1e3:9.0f}{spec.read_bytes / s / 1e9:7.1f}"
                f"{2 * spec.products / s / 1e9:9.1f}{floor * 1e6:10.1f}{s / floor:9.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
