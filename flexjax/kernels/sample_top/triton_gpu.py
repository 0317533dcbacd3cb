"""Top-k, top-p and min-p on NVIDIA GPUs: one Triton program a row, which bisects while the row lies in the cache."""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import jax_triton  # pyright: ignore[reportMissingImports]
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Float, Int

from flexjax.kernels import registry

BLOCK = 4096  # Logits at a time.


def sample_top(
    logits: Float[Array, "B V"], top_k: Int[Array, "B"], top_p: Float[Array, "B"], min_p: Float[Array, "B"]
) -> Float[Array, "B"]:
    """The contract of `api.py`."""
    registry.refuse_mesh()
    B, V = logits.shape
    cost: Any = {"flops": 0, "bytes_accessed": logits.nbytes}
    return jax_triton.triton_call(
        logits, top_k, top_p, jnp.log(min_p),
        kernel=_least_kept,
        out_type=jax.ShapeDtypeStruct((B,), jnp.float32),
        grid=(B,),
        name="sample_top",
        num_warps=16,
        num_stages=2,
        backend_options={"enable_fp_fusion": True},
        cost_estimate=cost,
        V=V, BLOCK=min(BLOCK, triton.next_power_of_2(V)),
    )  # fmt: skip


@triton.jit
@no_type_check
def _as_float(i):
    """The float32 at this place in their order, 0 being zero."""
    return tl.where(i >= 0, i, -2147483648 - i).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _least_kept(logits_ptr, k_ptr, p_ptr, floor_ptr, limit_ptr, V: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * V
    lane = tl.arange(0, BLOCK)
    k, p = tl.load(k_ptr + row), tl.load(p_ptr + row)
    tops = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, V, BLOCK):
        tops = tl.maximum(tops, tl.load(logits_ptr + start + lane, mask=start + lane < V, other=float("-inf")))
    top = tl.max(tops, axis=0)

    low, high = tl.full((), -0x7F800000, tl.int32), tl.full((), 0x7F800000, tl.int32)
    if (k > 0) & (k < V):
        for _ in range(32):
            middle = (low | high) - ((low ^ high) >> 1)  # The mean rounded up, without overflow.
            limit = _as_float(middle)
            counts = tl.zeros((BLOCK,), tl.int32)
            for start in range(0, V, BLOCK):
                # What is past the end is counted by no limit: bisection never tries -inf.
                x = tl.load(logits_ptr + start + lane, mask=start + lane < V, other=float("-inf"))
                counts += (x >= limit).to(tl.int32)
            enough = tl.sum(counts, axis=0) >= k
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle - 1)
    kth = _as_float(low)

    if p < 1:
        masses = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, V, BLOCK):
            x = tl.load(logits_ptr + start + lane, mask=start + lane < V, other=float("-inf"))
            masses += tl.where(x >= kth, tl.exp(x - top), 0.0)
        wanted = p * tl.sum(masses, axis=0)
        high = tl.full((), 0x7F800000, tl.int32)
        for _ in range(32):
            middle = (low | high) - ((low ^ high) >> 1)
            limit = tl.maximum(_as_float(middle), kth)
            masses = tl.zeros((BLOCK,), tl.float32)
            for start in range(0, V, BLOCK):
                x = tl.load(logits_ptr + start + lane, mask=start + lane < V, other=float("-inf"))
                masses += tl.where(x >= limit, tl.exp(x - top), 0.0)
            enough = tl.sum(masses, axis=0) >= wanted
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle - 1)
    tl.store(limit_ptr + row, tl.maximum(_as_float(low), top + tl.load(floor_ptr + row)))
