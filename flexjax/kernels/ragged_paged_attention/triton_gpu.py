"""Ragged paged attention on NVIDIA GPUs: one Triton kernel for decoding, verification and prefill.

A program has a block of one sequence's rows and all query heads of one kv head, so that keys and values are read once
for the whole group; it walks the sequence's pages with an online softmax. Where there are too few programs to keep a
GPU busy (decoding), the context is cut into spans, whose softmaxes are put together at the end.

float8 is widened by its bits, which every GPU can: as half precision with the same exponent and mantissa it is 256
times too small. int4 pages give keys and values in one load.
"""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import jax_triton  # pyright: ignore[reportMissingImports]
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Array, Float, Int

from flexjax.kernels.ragged_paged_attention.pages import BarePages, Int4Pages, dtype_name, sizes, written
from flexjax.kernels.ragged_paged_attention.scaled import serves_scaled_pages

BLOCK_M_DECODE = 16  # Rows times heads of a kv head at a time: the fewest that the tensor cores take,
BLOCK_M = 64  # and in steps with more than one row of a sequence.
TILE_BYTES = 16 * 2**10  # Of keys, and as much of values, at a time.
PROGRAMS = 512  # That keep a GPU of about 130 multiprocessors busy.
SPAN = 512  # Tokens of a span, at least.
STAGES = 2  # Tiles in flight.


@serves_scaled_pages
def ragged_paged_attention(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    kv_pages: BarePages,
    query_starts: Int[Array, "B+1"],
    kv_lengths: Int[Array, "B"],
    page_table: Int[Array, "B P"],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    max_query_len: int,
) -> tuple[Float[Array, "T N H"], BarePages]:
    """The contract of `api.py`. In bfloat16 weights are rounded to it before they are multiplied with values."""
    _refuse(q, kv_pages)
    (T, N, H), (num_pages, page_size, K, _), (B, P) = q.shape, sizes(kv_pages), page_table.shape
    row = jnp.arange(T, dtype=jnp.int32)
    live = row < query_starts[B]
    sequence = jnp.sum(query_starts[None, 1:] <= row[:, None], axis=1, dtype=jnp.int32)
    sequence = jnp.minimum(sequence, B - 1)
    position = kv_lengths[sequence] - query_starts[sequence + 1] + row
    page = jnp.where(live, page_table[sequence, position // page_size], num_pages)  # Out of bounds: dropped.
    kv_pages = written(kv_pages, k, v, page, position % page_size)
    unit, int4, float8 = 1.0, False, False
    if isinstance(kv_pages, Int4Pages):
        pages, scales, int4 = kv_pages.values, kv_pages.scales, True
    else:
        pages, scales, float8 = kv_pages, jnp.zeros(1, jnp.bfloat16), kv_pages.dtype == jnp.float8_e4m3fn
    if float8:
        pages, unit = jax.lax.bitcast_convert_type(pages, jnp.int8), 256.0

    wide = q.dtype == jnp.float32 or pages.dtype == jnp.float32
    heads = triton.next_power_of_2(N // K)
    block_q = max(1, (BLOCK_M_DECODE if max_query_len == 1 else BLOCK_M // (2 if wide else 1)) // heads)
    blocks = T // block_q + B
    spans = max(1, min(PROGRAMS // (blocks * K), P * page_size // SPAN))
    span = triton.cdiv(triton.cdiv(P * page_size, spans), page_size) * page_size
    spans = triton.cdiv(P * page_size, span)
    width = max(16, triton.next_power_of_2(H))
    statistics = jax.ShapeDtypeStruct((spans, T, N) if spans > 1 else (1,), jnp.float32)
    sums, tops, totals = jax_triton.triton_call(
        q, pages, scales, query_starts, kv_lengths, page_table,
        kernel=_attend,
        out_type=[
            jax.ShapeDtypeStruct((spans, T, N, H), jnp.float32 if spans > 1 else q.dtype),
            statistics,
            statistics,
        ],
        grid=(blocks, K, spans),
        name="ragged_paged_attention",
        num_warps=8 if max_query_len > 1 and (width > 128 or int4) else 4,
        num_stages=STAGES,
        backend_options={"enable_fp_fusion": True},
        cost_estimate=_cost(q, kv_pages, page_table),
        B=B, T=T, P=P, K=K, G=N // K, H=H, PAGE=page_size, SPAN=span,
        SCALE=scale, UNIT=unit, SPANS=spans, WINDOW=window or 0, SOFTCAP=softcap or 0.0,
        BLOCK_B=triton.next_power_of_2(B), BLOCK_Q=block_q, HEADS=heads, WIDTH=width,
        BLOCK_S=max(16, min(128, TILE_BYTES // width // (4 if wide else 2))), WIDE=wide,
        FLOAT8=float8, INT4=int4,
    )  # fmt: skip
    # Rows of nobody are written by none.
    sums = jnp.where(live[None, :, None, None], sums, jnp.zeros((), sums.dtype))
    if spans == 1:
        return sums[0], kv_pages
    tops, totals = (jnp.where(live[None, :, None], each, 1.0) for each in (tops, totals))
    shares = jnp.exp2(tops - jnp.max(tops, axis=0, keepdims=True))
    total = jnp.sum(totals * shares, axis=0)
    out = jnp.sum(sums * shares[..., None], axis=0) / total[..., None]
    return out.astype(q.dtype), kv_pages


def _refuse(q: Array, kv_pages: BarePages) -> None:
    served = ("bfloat16", "float32")
    if q.dtype.name not in served or dtype_name(kv_pages) not in (*served, "int8", "float8_e4m3fn", "int4"):
        raise NotImplementedError(
            f"q is {q.dtype.name} and kv_pages are {dtype_name(kv_pages)}; bfloat16 and float32 are served, and int8, "
            "float8_e4m3fn and int4 in pages"
        )
    if q.shape[2] > 256:
        raise NotImplementedError(f"head_dim={q.shape[2]} is more than the 256 that fit a program's memory")


def _cost(q: Array, kv_pages: BarePages, page_table: Array) -> Any:
    """Of every sequence at the full width of the page table, each page read once."""
    T, N, H = q.shape
    num_pages, page_size, _, _ = sizes(kv_pages)
    pages = page_table.shape[0] * page_table.shape[1]
    return {
        "flops": 4 * T * N * H * page_table.shape[1] * page_size,
        "bytes_accessed": pages * sum(leaf.nbytes for leaf in jax.tree.leaves(kv_pages)) // num_pages + 2 * q.nbytes,
    }


@triton.jit
@no_type_check
def _widened(x):
    """Of float8's bits, a 256th of what they mean."""
    bits = x.to(tl.int16)
    return (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)


@triton.jit
@no_type_check
def _attend(
    q_ptr, pages_ptr, scales_ptr, starts_ptr, lengths_ptr, table_ptr, sums_ptr, tops_ptr, totals_ptr,
    B: tl.constexpr, T: tl.constexpr, P: tl.constexpr, K: tl.constexpr, G: tl.constexpr, H: tl.constexpr,
    PAGE: tl.constexpr, SPAN: tl.constexpr, SCALE: tl.constexpr, UNIT: tl.constexpr,
    SPANS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_Q: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr, WIDE: tl.constexpr, FLOAT8: tl.constexpr, INT4: tl.constexpr,
):  # fmt: skip
    """The attention of a block of rows; of several spans, each one's weighted sum of values, largest score (as a power
    of two) and sum of weights."""
    DTYPE: tl.constexpr = tl.float32 if WIDE else tl.bfloat16
    # Sequence b's blocks begin at starts[b] // BLOCK_Q + b, which leaves room for each one's last, part-filled block.
    every = tl.arange(0, BLOCK_B)
    starts = tl.load(starts_ptr + every, mask=every < B, other=T)
    begun = (starts // BLOCK_Q + every <= tl.program_id(0)).to(tl.int32) * (every < B).to(tl.int32)
    b = tl.sum(begun, axis=0) - 1
    start, end = tl.load(starts_ptr + b), tl.load(starts_ptr + b + 1)
    first = start + (tl.program_id(0) - (start // BLOCK_Q + b)) * BLOCK_Q
    if first >= end:
        return
    length = tl.load(lengths_ptr + b)
    kv_head, span = tl.program_id(1), tl.program_id(2)
    m = tl.arange(0, BLOCK_Q * HEADS)
    row, head = first + m // HEADS, m % HEADS
    live = (row < end) & (head < G)
    position = length - end + row
    h = tl.arange(0, WIDTH)
    at = (row * K + kv_head) * G + head
    q = tl.load(q_ptr + at[:, None] * H + h[None, :], mask=live[:, None] & (h < H)[None, :], other=0.0).to(DTYPE)

    last = length - end + tl.minimum(first + BLOCK_Q, end) - 1
    oldest = span * SPAN
    if WINDOW > 0:
        oldest = tl.maximum(oldest, length - end + first - WINDOW + 1)
    newest = tl.minimum((span + 1) * SPAN, last + 1)
    top = tl.full(
        (BLOCK_Q * HEADS,), -1e30, tl.float32
    )  # Finite, so that a tile of which nothing is seen adds nothing.
    total = tl.zeros((BLOCK_Q * HEADS,), tl.float32)
    sums = tl.zeros((BLOCK_Q * HEADS, WIDTH), tl.float32)
    for tile in range(oldest // BLOCK_S * BLOCK_S, newest, BLOCK_S):
        s = tile + tl.arange(0, BLOCK_S)
        there = (s >= oldest) & (s < newest)  # What nobody sees may hold anything, NaN included.
        page = tl.load(table_ptr + b * P + s // PAGE, mask=there, other=0).to(tl.int64)
        if INT4:
            token = pages_ptr + ((page * K + kv_head) * PAGE + s % PAGE) * H
            both = tl.load(token[:, None] + h[None, :], mask=there[:, None] & (h < H)[None, :], other=0)
            key, value = tl.trans((both << 4) >> 4), both >> 4
            scale = scales_ptr + (page * K + kv_head) * (2 * PAGE) + s % PAGE
            key_scale = tl.load(scale, mask=there, other=0.0).to(tl.float32)
            value_scale = tl.load(scale + PAGE, mask=there, other=0.0).to(tl.float32)
        else:
            token = pages_ptr + ((page * PAGE + s % PAGE) * K + kv_head) * (2 * H)
            key = tl.load(token[None, :] + h[:, None], mask=there[None, :] & (h < H)[:, None], other=0)
            if FLOAT8:
                key = _widened(key)
        score = tl.dot(q, key.to(DTYPE), input_precision="ieee") * (SCALE * UNIT)
        if INT4:
            score *= key_scale[None, :]
        if SOFTCAP > 0:
            score = SOFTCAP - 2 * SOFTCAP / (tl.exp(2 * score / SOFTCAP) + 1)  # tanh
        seen = there[None, :] & (s[None, :] <= position[:, None])
        if WINDOW > 0:
            seen = seen & (s[None, :] > position[:, None] - WINDOW)
        score = tl.where(seen, score * 1.4426950408889634, float("-inf"))
        larger = tl.maximum(top, tl.max(score, axis=1))
        weight = tl.exp2(score - larger[:, None])
        shrink = tl.exp2(top - larger)
        total = total * shrink + tl.sum(weight, axis=1)
        if INT4:
            weight *= value_scale[None, :]
        else:
            value = tl.load(token[:, None] + H + h[None, :], mask=there[:, None] & (h < H)[None, :], other=0)
            if FLOAT8:
                value = _widened(value)
        sums = tl.dot(weight.to(DTYPE), value.to(DTYPE), sums * shrink[:, None], input_precision="ieee")
        top = larger
    sums *= UNIT
    out = (span * T * K * G + at).to(tl.int64)
    if SPANS == 1:
        sums /= total[:, None]
    else:
        tl.store(tops_ptr + out, top, mask=live)
        tl.store(totals_ptr + out, total, mask=live)
    tl.store(
        sums_ptr + out[:, None] * H + h[None, :],
        sums.to(sums_ptr.dtype.element_ty),
        mask=live[:, None] & (h < H)[None, :],
    )
