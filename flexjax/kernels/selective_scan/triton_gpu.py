"""The selective scan on NVIDIA GPUs: one Triton program for each sequence and block of channels.

A program goes through its rows a chunk at a time, and through a chunk by a parallel scan in registers.
"""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import jax_triton  # pyright: ignore[reportMissingImports]
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Bool, Float, Int

CHUNK = 16  # Rows at a time.
BLOCK_D = 32  # Channels of one program.
OPTIONS: dict[str, Any] = dict(num_warps=8, num_stages=1, backend_options={"enable_fp_fusion": True})


def selective_scan(
    x: Float[Array, "T D"],
    dt: Float[Array, "T D"],
    A: Float[Array, "N D"],
    B: Float[Array, "T N"],
    C: Float[Array, "T N"],
    skip: Float[Array, "D"],
    dt_bias: Float[Array, "D"],
    z: Float[Array, "T D"] | None,
    states: Float[Array, "slots N D"],
    query_starts: Int[Array, "B+1"],
    state_slots: Int[Array, "B"],
    fresh: Bool[Array, "B"],
    *,
    max_query_len: int,
) -> tuple[Float[Array, "T D"], Float[Array, "slots N D"]]:
    """The contract of `api.py`, without gradients."""
    D, N, num_sequences = x.shape[1], A.shape[0], state_slots.shape[0]
    pool, out = jax.new_ref(states), jax.new_ref(jnp.zeros_like(x))  # Zeros: no program comes by padding.
    jax_triton.triton_call(
        x, dt, A, B, C, skip, dt_bias, x if z is None else z, pool, out, query_starts, state_slots,
        fresh.astype(jnp.int32),
        kernel=_scan,
        out_type=(),
        grid=(num_sequences, triton.cdiv(D, BLOCK_D)),
        name="selective_scan",
        cost_estimate=_cost(x, z, states, num_sequences),
        D=D, N=N, BLOCK_N=triton.next_power_of_2(N), BLOCK_D=BLOCK_D, GATED=z is not None,
        CHUNK=1 if max_query_len == 1 else CHUNK,
        **OPTIONS,
    )  # fmt: skip
    return out[...], pool[...]


def _cost(x: Array, z: Array | None, states: Array, num_sequences: int) -> Any:
    moved = num_sequences * states.nbytes // states.shape[0]
    return dict(
        flops=6 * x.size * states.shape[1],
        bytes_accessed=(3 if z is None else 4) * x.nbytes + 2 * moved,
    )


@triton.jit
@no_type_check
def _then(decay, added, next_decay, next_added):
    """Two steps of the recurrence as one."""
    return decay * next_decay, added * next_decay + next_added


@triton.jit
@no_type_check
def _scan(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, skip_ptr, bias_ptr, z_ptr, pool_ptr, out_ptr, starts_ptr, slots_ptr, fresh_ptr,
    D: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GATED: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    begin, end = tl.load(starts_ptr + b), tl.load(starts_ptr + b + 1)
    if begin == end:
        return
    d, n, row = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N), tl.arange(0, CHUNK)
    is_d, is_n = d < D, n < N
    is_state = is_n[:, None] & is_d[None, :]
    at_state = pool_ptr + (tl.load(slots_ptr + b).to(tl.int64) * N + n)[:, None] * D + d[None, :]
    is_old = n < N * (1 - tl.load(fresh_ptr + b))  # None, where the sequence is fresh.
    h = tl.load(at_state, mask=is_state & is_old[:, None], other=0.0).to(tl.float32)
    A = tl.load(A_ptr + n[:, None] * D + d[None, :], mask=is_state, other=0.0).to(tl.float32)
    skip = tl.load(skip_ptr + d, mask=is_d, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + d, mask=is_d, other=0.0).to(tl.float32)

    for first in range(begin, end, CHUNK):
        t = first + row
        live = t < end
        by_channel = t.to(tl.int64)[:, None] * D + d[None, :]
        is_here = live[:, None] & is_d[None, :]
        by_n, is_bc = t[:, None] * N + n[None, :], live[:, None] & is_n[None, :]
        x = tl.load(x_ptr + by_channel, mask=is_here, other=0.0).to(tl.float32)
        step = tl.load(dt_ptr + by_channel, mask=is_here, other=0.0).to(tl.float32) + bias[None, :]
        step = tl.maximum(step, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(step)))  # softplus
        step = tl.where(live[:, None], step, 0.0)  # After the last row the state stays as it is.
        B = tl.load(B_ptr + by_n, mask=is_bc, other=0.0).to(tl.float32)
        C = tl.load(C_ptr + by_n, mask=is_bc, other=0.0).to(tl.float32)
        decay = tl.exp(step[:, None, :] * A[None])
        added = B[:, :, None] * (step * x)[:, None, :]
        decay, added = tl.associative_scan((decay, added), 0, _then)
        states = decay * h[None] + added
        y = tl.sum(states * C[:, :, None], axis=1) + skip[None, :] * x
        if GATED:
            gate = tl.load(z_ptr + by_channel, mask=is_here, other=0.0).to(tl.float32)
            y = y * gate / (1.0 + tl.exp(-gate))
        tl.store(out_ptr + by_channel, y, mask=is_here)
        h = tl.sum(tl.where((row == CHUNK - 1)[:, None, None], states, 0.0), axis=0)
    tl.store(at_state, h, mask=is_state)
