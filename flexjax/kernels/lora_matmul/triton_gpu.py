"""Gathered LoRA matmul on NVIDIA GPUs: two Triton kernels, one program for each adapter in use and block of rows.

A program whose block has no row of its adapter ends at once, so an adapter is read only where it is needed. The first
product is cut along D, because one adapter's few columns would leave the GPU idle; its parts are summed in the second
kernel in a fixed order.
"""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import jax_triton  # pyright: ignore[reportMissingImports]
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Float

from flexjax.kernels.lora_matmul.rows import AdapterRows

DECODE_ROWS = 64  # Up to so many rows, blocks of rows are as small as the tensor cores take.
BLOCK_D = 128  # Summed elements of the first product at a time.
PART_D = 512  # That one program sums.
BLOCK_F = 128  # Columns of the second product that one program makes.
OPTIONS: dict[str, Any] = dict(num_warps=4, num_stages=3, backend_options={"enable_fp_fusion": True})


def lora_matmul(
    y: Float[Array, "T F"],
    x: Float[Array, "T D"],
    a: Float[Array, "A R D"],
    b: Float[Array, "A R F"],
    rows: AdapterRows,
) -> Float[Array, "T F"]:
    """The contract of `api.py`."""
    (T, D), R, F = x.shape, a.shape[1], y.shape[1]
    parts, block_t = triton.cdiv(D, PART_D), 16 if T <= DECODE_ROWS else 32
    sizes = dict(T=T, R=R, RANK=max(16, triton.next_power_of_2(R)), BLOCK_T=block_t)
    grid = (rows.used.size, triton.cdiv(T, block_t))
    h = jax_triton.triton_call(
        x, a, rows.slot, rows.used,
        kernel=_shrink,
        out_type=jax.ShapeDtypeStruct((parts, T, R), jnp.float32),
        grid=(*grid, parts),
        name="lora_shrink",
        cost_estimate=_cost(rows, x, a),
        D=D, BLOCK_D=BLOCK_D, PART_D=PART_D, **sizes,
        **OPTIONS,
    )  # fmt: skip
    y_ref = jax.new_ref(y)  # Rows without an adapter stay as they are.
    jax_triton.triton_call(
        y_ref, h, b, rows.slot, rows.used,
        kernel=_expand,
        out_type=(),
        grid=(*grid, triton.cdiv(F, BLOCK_F)),
        name="lora_expand",
        cost_estimate=_cost(rows, y, b),
        F=F, BLOCK_F=BLOCK_F, PARTS=parts, **sizes,
        **OPTIONS,
    )  # fmt: skip
    return y_ref[...]


def _cost(rows: AdapterRows, across: Array, weight: Array) -> Any:
    (T, width), rank = across.shape, weight.shape[1]
    return dict(
        flops=2 * T * width * rank,
        bytes_accessed=rows.used.size * rank * width * weight.dtype.itemsize + across.nbytes,
    )


@triton.jit
@no_type_check
def _own_rows(slot_ptr, T: tl.constexpr, BLOCK_T: tl.constexpr):
    """This program's rows, and which of them have its adapter."""
    row = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    slot = tl.load(slot_ptr + row, mask=row < T, other=-1)
    return row, slot == tl.program_id(0)


@triton.jit
@no_type_check
def _shrink(
    x_ptr, a_ptr, slot_ptr, used_ptr, h_ptr,
    T: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr, BLOCK_T: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, PART_D: tl.constexpr,
):  # fmt: skip
    """h[part] = x @ a[i].T over this part of D."""
    row, own = _own_rows(slot_ptr, T, BLOCK_T)
    if tl.max(own.to(tl.int32), axis=0) == 0:
        return
    adapter = tl.load(used_ptr + tl.program_id(0)).to(tl.int64)
    part = tl.program_id(2)
    rank = tl.arange(0, RANK)
    sums = tl.zeros((BLOCK_T, RANK), tl.float32)
    for start in range(0, PART_D, BLOCK_D):
        d = part * PART_D + start + tl.arange(0, BLOCK_D)
        x = tl.load(x_ptr + row[:, None] * D + d[None, :], mask=own[:, None] & (d < D)[None, :], other=0.0)
        a = tl.load(
            a_ptr + (adapter * R + rank[None, :]) * D + d[:, None],
            mask=(rank < R)[None, :] & (d < D)[:, None],
            other=0.0,
        )
        sums = tl.dot(x, a, sums, input_precision="ieee")
    tl.store(h_ptr + (part * T + row[:, None]) * R + rank[None, :], sums, mask=own[:, None] & (rank < R)[None, :])


@triton.jit
@no_type_check
def _expand(
    y_ptr, h_ptr, b_ptr, slot_ptr, used_ptr,
    T: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr, BLOCK_T: tl.constexpr,
    F: tl.constexpr, BLOCK_F: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """y += h @ b[i], of this adapter's rows."""
    row, own = _own_rows(slot_ptr, T, BLOCK_T)
    if tl.max(own.to(tl.int32), axis=0) == 0:
        return
    adapter = tl.load(used_ptr + tl.program_id(0)).to(tl.int64)
    rank = tl.arange(0, RANK)
    f = tl.program_id(2) * BLOCK_F + tl.arange(0, BLOCK_F)
    h = tl.zeros((BLOCK_T, RANK), tl.float32)
    for part in range(PARTS):
        h += tl.load(
            h_ptr + (part * T + row[:, None]) * R + rank[None, :], mask=own[:, None] & (rank < R)[None, :], other=0.0
        )
    b = tl.load(
        b_ptr + (adapter * R + rank[:, None]) * F + f[None, :], mask=(rank < R)[:, None] & (f < F)[None, :], other=0.0
    )
    at = y_ptr + row[:, None] * F + f[None, :]
    mask = own[:, None] & (f < F)[None, :]
    tl.store(at, tl.load(at, mask=mask, other=0.0) + tl.dot(h.to(b.dtype), b, input_precision="ieee"), mask=mask)
