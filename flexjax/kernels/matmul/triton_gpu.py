"""Rows times int8, int4 or float8 weights on NVIDIA GPUs: a Triton kernel that reads each weight once, in its few bits.

Weights are widened in registers and multiplied by the tensor cores. int4 lie two to a byte, as XLA holds them: the even
columns and the odd ones are two products, put together at the end. Where a weight has too few columns to keep a GPU
busy, D is cut into parts, whose sums are added in a fixed order; but the more rows there are, the larger these sums
beside the weight. Programs that read the same columns for different rows run side by side and find them in the cache.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import jax_triton  # pyright: ignore[reportMissingImports]
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Float, Int, Num

from flexjax.hardware import chips
from flexjax.kernels import registry
from flexjax.kernels.matmul.layers import of_layer
from flexjax.kernels.matmul.rows import rounded_rows

BLOCK_T = 16  # Rows at a time in decoding: the fewest that the tensor cores take.
BLOCK_T_MANY = 64  # Rows at a time past `DECODE_ROWS`.
DECODE_ROWS = 32
BLOCK_F = 64  # Columns of one program.
BLOCK_D = 128  # Summed elements at a time where they share one scale; else a group.
PROGRAMS = 264  # That keep a GPU of about 130 multiprocessors busy.
PART_D = 512  # Summed elements of a part, at least.
SUMS_SHARE = 0.25  # Of a weight's bytes, that sums of parts may take, written and read again.
MOST_ROWS = 512  # With one scale a channel. Then cuBLAS, after widening the weight once, has more to win than to lose.
STAGES = 4  # Blocks of the weight in flight.
FLOAT8_CAPABILITY = (8, 9)  # The first with an instruction that widens it.


def matmul(
    x: Float[Array, "T D"],
    values: Num[Array, "*L D F"],
    scale: Float[Array, "..."] | None,
    *,
    layer: Int[Array, ""] | None = None,
    activation_dtype: str | None = None,
) -> Float[Array, "T F"]:
    """The contract of `api.py`, for values with scales. A stack's layer is sliced out of it first."""
    values, scale = of_layer(values, scale, layer)
    _refuse(x, values, scale, activation_dtype)
    assert scale is not None
    (T, D), F, four_bits = x.shape, values.shape[1], values.dtype == jnp.int4
    row_scale = None
    if activation_dtype == "int8":
        x, row_scale = rounded_rows(x)
    if four_bits:
        values = jax.lax.bitcast_convert_type(values.reshape(D, F // 2, 2), jnp.int8)
    block_t = BLOCK_T if T <= DECODE_ROWS else BLOCK_T_MANY
    block_d = BLOCK_D if scale.ndim == 1 else D // scale.shape[0]
    programs = triton.cdiv(F, BLOCK_F) * triton.cdiv(T, block_t)
    weight_bytes = D * F // (2 if four_bits else 1) + scale.nbytes
    affordable = int(SUMS_SHARE * weight_bytes) // (2 * 4 * T * F)
    parts = max(1, min(PROGRAMS // programs, D // PART_D, affordable))
    part_d = triton.cdiv(triton.cdiv(D, parts), block_d) * block_d
    parts = triton.cdiv(D, part_d)
    sums = jax_triton.triton_call(
        x, values, scale,
        kernel=_multiply,
        out_type=jax.ShapeDtypeStruct((parts, T, F), jnp.float32),
        grid=(triton.cdiv(T, block_t), triton.cdiv(F, BLOCK_F), parts),
        name="matmul",
        num_warps=4,
        num_stages=STAGES,
        backend_options={"enable_fp_fusion": True},
        cost_estimate={"flops": 2 * T * D * F, "bytes_accessed": weight_bytes + x.nbytes + 4 * parts * T * F},
        T=T, D=D, F=F, PART_D=part_d, GROUPED=scale.ndim == 2, FOUR_BITS=four_bits,
        BLOCK_T=block_t, BLOCK_D=block_d, BLOCK_F=BLOCK_F,
    )  # fmt: skip
    y = sums[0]
    for part in range(1, parts):
        y = y + sums[part]
    return y if row_scale is None else y * row_scale


def _refuse(x: Array, values: Array, scale: Array | None, activation_dtype: str | None) -> None:
    (D, F), name = values.shape, values.dtype.name
    if scale is None or name not in ("int8", "int4", "float8_e4m3fn"):
        raise NotImplementedError(f"{name} values without a scale are XLA's to serve")
    if name == "int4" and F % 2:
        raise NotImplementedError(f"int4 are read in pairs; F={F} is odd")
    group = D // scale.shape[0] if scale.ndim == 2 else 32
    if group < 32 or group & (group - 1) or group > 128:
        raise NotImplementedError(f"groups of {group} summed elements; 32, 64 and 128 are served")
    if scale.ndim == 1 and x.shape[0] > MOST_ROWS and activation_dtype is None:
        raise NotImplementedError(f"{x.shape[0]} rows; up to {MOST_ROWS} are served, and more by a weight widened once")
    if name == "float8_e4m3fn" and (capability := _capability()) < FLOAT8_CAPABILITY:
        raise NotImplementedError(f"a GPU of compute capability {capability[0]}.{capability[1]} has no float8")
    registry.refuse_mesh()


def _capability() -> tuple[int, ...]:
    """Of the GPU that is compiled for: the described one, else the first that is here."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is None:
        return tuple(int(part) for part in str(getattr(jax.devices()[0], "compute_capability", "0.0")).split("."))
    chip = chips.of_device_kind(described.device_kind)
    return tuple(chip.compiler["capability"]) if chip is not None and chip.compiler is not None else (0, 0)


@triton.jit
@no_type_check
def _multiply(
    x_ptr, values_ptr, scale_ptr, sums_ptr,
    T: tl.constexpr, D: tl.constexpr, F: tl.constexpr, PART_D: tl.constexpr,
    GROUPED: tl.constexpr, FOUR_BITS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """sums[part] = the part's x @ values, times its scales."""
    PER_BYTE: tl.constexpr = 2 if FOUR_BITS else 1
    COLUMNS: tl.constexpr = BLOCK_F // PER_BYTE
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)  # In bytes.
    part = tl.program_id(2)
    rows, columns = (row < T)[:, None], (column < F // PER_BYTE)[None, :]
    SUM: tl.constexpr = tl.int32 if x_ptr.dtype.element_ty == tl.int8 else tl.float32
    even = tl.zeros((BLOCK_T, COLUMNS), tl.float32 if GROUPED else SUM)
    odd = tl.zeros((BLOCK_T, COLUMNS), tl.float32 if GROUPED else SUM)
    for start in range(0, PART_D, BLOCK_D):
        d = part * PART_D + start + tl.arange(0, BLOCK_D)
        x = tl.load(x_ptr + row[:, None] * D + d[None, :], mask=rows & (d < D)[None, :], other=0.0)
        values = tl.load(
            values_ptr + d[:, None].to(tl.int64) * (F // PER_BYTE) + column[None, :],
            mask=(d < D)[:, None] & columns,
            other=0.0,
            eviction_policy="evict_first",
        )
        if FOUR_BITS:
            low = ((values << 4) >> 4).to(x.dtype)
            high = (values >> 4).to(x.dtype)
        else:
            low = values.to(x.dtype)
            high = low
        if GROUPED:
            group = tl.minimum((part * PART_D + start) // BLOCK_D, D // BLOCK_D - 1)  # Past the end x is zero.
            at = scale_ptr + group * F + column * PER_BYTE
            known = column < F // PER_BYTE
            even += tl.dot(x, low, input_precision="ieee").to(tl.float32) * tl.load(at, mask=known, other=0.0)[None, :]
            if FOUR_BITS:
                scale = tl.load(at + 1, mask=known, other=0.0)
                odd += tl.dot(x, high, input_precision="ieee").to(tl.float32) * scale[None, :]
        else:
            even = tl.dot(x, low, even, input_precision="ieee")
            if FOUR_BITS:
                odd = tl.dot(x, high, odd, input_precision="ieee")
    even, odd = even.to(tl.float32), odd.to(tl.float32)
    if not GROUPED:
        at = scale_ptr + column * PER_BYTE
        even *= tl.load(at, mask=column < F // PER_BYTE, other=0.0)[None, :]
        if FOUR_BITS:
            odd *= tl.load(at + 1, mask=column < F // PER_BYTE, other=0.0)[None, :]
    out = tl.interleave(even, odd) if FOUR_BITS else even
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    at = sums_ptr + (part * T + row[:, None]).to(tl.int64) * F + column[None, :]
    tl.store(at, out, mask=rows & (column < F)[None, :])
