"""The short causal convolution on NVIDIA GPUs: one Triton kernel over rows and channels, one over sequences.

The second writes the states that the first reads, so they cannot be one: programs run in any order.
"""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import jax_triton  # pyright: ignore[reportMissingImports]
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Bool, Float, Int

from flexjax.kernels.recurrent import rows_of

BLOCK_T = 16  # Rows of one program.
BLOCK_D = 128  # Channels of one program.
OPTIONS: dict[str, Any] = dict(num_warps=4, num_stages=1, backend_options={"enable_fp_fusion": True})


def short_convolution(
    x: Float[Array, "T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None,
    states: Float[Array, "slots W D"],
    query_starts: Int[Array, "B+1"],
    state_slots: Int[Array, "B"],
    fresh: Bool[Array, "B"],
    *,
    silu: bool,
    max_query_len: int,
) -> tuple[Float[Array, "T D"], Float[Array, "slots W D"]]:
    """The contract of `api.py`, without gradients."""
    (T, D), W, num_sequences = x.shape, weight.shape[0], state_slots.shape[0]
    rows = rows_of(T, states.shape[0], query_starts, state_slots, fresh)
    # −1: zeros come before the sequence; −2: padding.
    before = jnp.where(rows.live, jnp.where(rows.starts_at_zero, -1, rows.slot), -2)
    sizes = dict(D=D, W=W, BLOCK_D=min(BLOCK_D, triton.next_power_of_2(D)))
    columns = triton.cdiv(D, sizes["BLOCK_D"])
    block_t = 1 if max_query_len == 1 else BLOCK_T
    states_nbytes = num_sequences * W * D * states.dtype.itemsize
    pool = jax.new_ref(states)
    out = jax_triton.triton_call(
        x, weight, x if bias is None else bias, pool, before, rows.offset,
        kernel=_convolve,
        out_type=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(triton.cdiv(T, block_t), columns),
        name="short_convolution",
        cost_estimate=_cost(2 * x.size * W, 2 * x.nbytes + states_nbytes),
        T=T, BLOCK_T=block_t, HAS_BIAS=bias is not None, SILU=silu, **sizes, **OPTIONS,
    )  # fmt: skip
    jax_triton.triton_call(
        x, pool, query_starts, state_slots, fresh.astype(jnp.int32),
        kernel=_remember,
        out_type=(),
        grid=(num_sequences, columns),
        name="short_convolution_states",
        cost_estimate=_cost(0, 2 * states_nbytes),
        TAPS=triton.next_power_of_2(W), **sizes, **OPTIONS,
    )  # fmt: skip
    return out, pool[...]


def _cost(flops: int, moved_bytes: int) -> Any:
    return dict(flops=flops, bytes_accessed=moved_bytes)


@triton.jit
@no_type_check
def _convolve(
    x_ptr, weight_ptr, bias_ptr, pool_ptr, before_ptr, offset_ptr, out_ptr,
    T: tl.constexpr, D: tl.constexpr, W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    before = tl.load(before_ptr + t, mask=t < T, other=-2)
    offset = tl.load(offset_ptr + t, mask=t < T, other=0)
    live, is_d = before != -2, d < D
    slot = tl.maximum(before, 0).to(tl.int64)
    y = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for back in tl.static_range(W):
        here = live & (offset >= back)
        earlier = live & (offset < back) & (before >= 0)
        value = tl.load(x_ptr + (t - back)[:, None] * D + d[None, :], mask=here[:, None] & is_d[None, :], other=0.0).to(
            tl.float32
        )
        value += tl.load(
            pool_ptr + (slot * W + W + offset - back)[:, None] * D + d[None, :],
            mask=earlier[:, None] & is_d[None, :],
            other=0.0,
        ).to(tl.float32)
        weight = tl.load(weight_ptr + (W - 1 - back) * D + d, mask=is_d, other=0.0).to(tl.float32)
        y += value * weight[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + d, mask=is_d, other=0.0).to(tl.float32)[None, :]
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    y = tl.where(live[:, None], y, 0.0)
    tl.store(out_ptr + t[:, None] * D + d[None, :], y, mask=(t < T)[:, None] & is_d[None, :])


@triton.jit
@no_type_check
def _remember(
    x_ptr, pool_ptr, starts_ptr, slots_ptr, fresh_ptr,
    D: tl.constexpr, W: tl.constexpr, TAPS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin, end = tl.load(starts_ptr + b), tl.load(starts_ptr + b + 1)
    if begin == end:
        return
    slot = tl.load(slots_ptr + b).to(tl.int64)
    tap = tl.arange(0, TAPS)
    is_tap = (tap < W)[:, None] & (d < D)[None, :]
    row = end - W + tap
    here = (row >= begin)[:, None] & is_tap
    is_old = tap < W * (1 - tl.load(fresh_ptr + b))  # None, where the sequence is fresh.
    earlier = (row < begin)[:, None] & is_tap & is_old[:, None]
    state = tl.load(x_ptr + row[:, None] * D + d[None, :], mask=here, other=0.0)
    state += tl.load(pool_ptr + (slot * W + tap + end - begin)[:, None] * D + d[None, :], mask=earlier, other=0.0)
    tl.debug_barrier()  # Some threads write what others read.
    tl.store(pool_ptr + (slot * W + tap)[:, None] * D + d[None, :], state, mask=is_tap)
