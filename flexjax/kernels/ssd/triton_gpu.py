"""SSD on NVIDIA GPUs: one Triton program for each sequence and half a head, or as many channels as `BLOCK_P`.

A program goes through its rows a chunk at a time by matrix products, its state in registers; a row alone takes the
recurrence itself, in float32, whatever else is in the batch.
"""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import jax_triton  # pyright: ignore[reportMissingImports]
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Bool, Float, Int

CHUNK = 32  # Rows at a time,
FLOAT32_CHUNK = 16  # and in float32, whose products take three passes; even so some registers spill.
BLOCK_P = 32  # Channels of one program.
OPTIONS: dict[str, Any] = dict(num_warps=4, num_stages=1, backend_options={"enable_fp_fusion": True})


def ssd(
    x: Float[Array, "T D"],
    dt: Float[Array, "T H"],
    A: Float[Array, "H"],
    B: Float[Array, "T G N"],
    C: Float[Array, "T G N"],
    skip: Float[Array, "H"],
    states: Float[Array, "slots N D"],
    query_starts: Int[Array, "B+1"],
    state_slots: Int[Array, "B"],
    fresh: Bool[Array, "B"],
    *,
    max_query_len: int,
) -> tuple[Float[Array, "T D"], Float[Array, "slots N D"]]:
    """The contract of `api.py`, without gradients."""
    D, (H,), (_, G, N), num_sequences = x.shape[1], A.shape, B.shape, state_slots.shape[0]
    pool, out = jax.new_ref(states), jax.new_ref(jnp.zeros_like(x))  # Zeros: no program comes by padding.
    jax_triton.triton_call(
        x, dt, A, B, C, skip, pool, out, query_starts, state_slots, fresh.astype(jnp.int32),
        kernel=_ssd,
        out_type=(),
        grid=(num_sequences, H, triton.cdiv(D // H, BLOCK_P)),
        name="ssd",
        cost_estimate=_cost(x, B, states, num_sequences, max_query_len),
        H=H, P=D // H, G=G, N=N,
        BLOCK_N=max(16, triton.next_power_of_2(N)), BLOCK_P=BLOCK_P,
        CHUNK=CHUNK if x.dtype.itemsize == 2 else FLOAT32_CHUNK, DECODE=max_query_len == 1,
        **OPTIONS,
    )  # fmt: skip
    return out[...], pool[...]


def _cost(x: Array, B: Array, states: Array, num_sequences: int, max_query_len: int) -> Any:
    within = 0 if max_query_len == 1 else CHUNK
    return dict(
        flops=2 * x.size * (2 * B.shape[2] + within),
        bytes_accessed=2 * (x.nbytes + B.nbytes + num_sequences * states.nbytes // states.shape[0]),
    )


@triton.jit
@no_type_check
def _ssd(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, skip_ptr, pool_ptr, out_ptr, starts_ptr, slots_ptr, fresh_ptr,
    H: tl.constexpr, P: tl.constexpr, G: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    CHUNK: tl.constexpr, DECODE: tl.constexpr,
):  # fmt: skip
    b, head = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(starts_ptr + b), tl.load(starts_ptr + b + 1)
    if begin == end:
        return
    group = head // (H // G)
    p, n = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    is_p, is_n = p < P, n < N
    is_state = is_n[:, None] & is_p[None, :]
    at_state = pool_ptr + (tl.load(slots_ptr + b).to(tl.int64) * N + n)[:, None] * (H * P) + head * P + p[None, :]
    is_old = n < N * (1 - tl.load(fresh_ptr + b))  # None, where the sequence is fresh.
    h = tl.load(at_state, mask=is_state & is_old[:, None], other=0.0).to(tl.float32)
    A, skip = tl.load(A_ptr + head).to(tl.float32), tl.load(skip_ptr + head).to(tl.float32)

    if DECODE or end - begin == 1:
        channels = begin.to(tl.int64) * (H * P) + head * P + p
        by_n = (begin * G + group) * N + n
        x = tl.load(x_ptr + channels, mask=is_p, other=0.0).to(tl.float32)
        step = tl.load(dt_ptr + begin * H + head).to(tl.float32)
        B = tl.load(B_ptr + by_n, mask=is_n, other=0.0).to(tl.float32)
        C = tl.load(C_ptr + by_n, mask=is_n, other=0.0).to(tl.float32)
        h = tl.exp(step * A) * h + B[:, None] * (step * x)[None, :]
        tl.store(out_ptr + channels, tl.sum(h * C[:, None], axis=0) + skip * x, mask=is_p)
    else:
        row = tl.arange(0, CHUNK)
        for first in range(begin, end, CHUNK):
            t = first + row
            live = t < end
            channels = t.to(tl.int64)[:, None] * (H * P) + head * P + p[None, :]
            is_here = live[:, None] & is_p[None, :]
            by_n, is_bc = (t[:, None] * G + group) * N + n[None, :], live[:, None] & is_n[None, :]
            x = tl.load(x_ptr + channels, mask=is_here, other=0.0)
            step = tl.load(dt_ptr + t * H + head, mask=live, other=0.0).to(tl.float32)
            B = tl.load(B_ptr + by_n, mask=is_bc, other=0.0)
            C = tl.load(C_ptr + by_n, mask=is_bc, other=0.0)
            decay = tl.cumsum(step * A, axis=0)  # Logarithm, from the chunk's beginning.
            total = tl.sum(step * A, axis=0)
            since = tl.where(row[:, None] >= row[None, :], decay[:, None] - decay[None, :], float("-inf"))
            scores = tl.dot(C, tl.trans(B), input_precision="tf32x3") * tl.exp(since) * step[None, :]
            y = tl.dot(C, h.to(C.dtype), input_precision="tf32x3") * tl.exp(decay)[:, None]
            y = tl.dot(scores.to(x.dtype), x, y, input_precision="tf32x3")
            tl.store(out_ptr + channels, y + skip * x.to(tl.float32), mask=is_here)
            left = x.to(tl.float32) * (step * tl.exp(total - decay))[:, None]
            h = tl.dot(tl.trans(B), left.to(x.dtype), tl.exp(total) * h, input_precision="tf32x3")
    tl.store(at_state, h, mask=is_state)
