"""Ragged paged attention over int4 pages on TPUs: a kernel of our own, where JAX's serves none.

A page of one kv head is a whole tile of tokens by channels, and its scales a row of tokens, as scores are: keys and
values are widened in on-chip memory, two at a time, and scores and weights take the scales. A turn of the grid has a
block of one sequence's rows, in decoding its one row, with all heads, and walks the pages that these see; what comes
next, also of the next block, is on its way while one computes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, Shaped

from flexjax.kernels.ragged_paged_attention.pages import Int4Pages, int4_encoded

BLOCK_KV = 512  # Tokens of one sequence read at a time, in whole pages.
BLOCK_ROWS = 32  # Of one sequence at a time, where it has several: times N rows of a product.
LANES = 128  # Of a register: channels, and tokens of a row of scales.
INT8_SUBLANES = 32  # Tokens of an int8 tile: as few as can be written are.
OFFSET = 128.0 + 8  # Of widened values: their bits count from 128, and -8 is the least.
WRITES = 16  # Tiles on their way at once.
VMEM_BYTES = 64 * 2**20  # Of 128 MiB; the rest is XLA's.


def ragged_paged_attention(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    kv_pages: Int4Pages,
    query_starts: Int[Array, "B+1"],
    kv_lengths: Int[Array, "B"],
    page_table: Int[Array, "B P"],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    max_query_len: int,
) -> tuple[Float[Array, "T N H"], Int4Pages]:
    """The contract of `api.py`. The declared cost is that of contexts as long as the page table is wide."""
    _refuse(q, kv_pages)
    values, scales = int4_encoded(k, v)
    batch = (query_starts, kv_lengths, page_table, max_query_len)
    kv_pages = Int4Pages(
        _write(kv_pages.values, values, *batch, width=INT8_SUBLANES),
        _write(kv_pages.scales, scales, *batch, width=LANES),
    )
    return _attend(q, kv_pages, *batch, scale=scale, window=window, softcap=softcap), kv_pages


def _refuse(q: Array, kv_pages: Int4Pages) -> None:
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        raise NotImplementedError(f"q is {q.dtype.name}; bfloat16 and float32 are served")
    page_size, head_dim = kv_pages.values.shape[2:]
    if page_size % LANES or head_dim % LANES:
        raise NotImplementedError(
            f"of int4 pages, page_size={page_size} and head_dim={head_dim} must be multiples of {LANES}, the lanes "
            "that hold a row of scales or of channels"
        )


def _sequence_of(ends: Int[Array, "B"], items: int) -> tuple[Int[Array, "I"], Int[Array, "I"]]:
    """The sequence of each of so many items, of which sequence b has those from `ends[b - 1]` to `ends[b]`, and its
    number there. All at once: a search in halves would be a loop of tiny ops in every layer."""
    item = jnp.arange(items, dtype=jnp.int32)
    sequence = jnp.sum(ends[None] <= item[:, None], axis=1, dtype=jnp.int32)
    sequence = jnp.minimum(sequence, len(ends) - 1)
    return sequence, item - jnp.where(sequence > 0, ends[sequence - 1], 0)


def _write(
    pool: Shaped[Array, "num_pages R page_size *H"],
    new: Shaped[Array, "T R *H"],
    query_starts: Int[Array, "B+1"],
    kv_lengths: Int[Array, "B"],
    page_table: Int[Array, "B P"],
    max_query_len: int,
    *,
    width: int,
) -> Shaped[Array, "num_pages R page_size *H"]:
    """The pool with the new rows at their positions, in place.

    Fewer than `width` tokens cannot be written: tiles of so many are read, changed and written back. No two of a call
    are the same, so that they need not wait for each other.
    """
    T, B = len(new), len(kv_lengths)
    num_pages, _, page_size = pool.shape[:3]
    rows = jnp.diff(query_starts)
    first = kv_lengths - rows
    tiles = jnp.where(rows > 0, (kv_lengths - 1) // width - first // width + 1, 0)
    ends = jnp.cumsum(tiles, dtype=jnp.int32)
    most = B if max_query_len == 1 else T // width + 2 * B
    most = -(-most // WRITES) * WRITES
    sequence, number = _sequence_of(ends, most)
    start = (first[sequence] // width + number) * width  # Position of a tile's first token.
    low, high = first[sequence] - start, kv_lengths[sequence] - start
    page = page_table[sequence, jnp.minimum(start // page_size, page_table.shape[1] - 1)]
    page = jnp.where(jnp.arange(most) < ends[-1], page, num_pages)
    row = (query_starts[sequence] - low)[:, None] + jnp.arange(width, dtype=jnp.int32)[None]
    fresh = jnp.moveaxis(new[jnp.clip(row, 0, T - 1)], 1, 2)  # [most, R, width, *H]
    block = fresh.shape[1:]

    def body(page_ref, start_ref, low_ref, high_ref, fresh_ref, _, pool_ref, held, semaphore):
        at = pl.program_id(0) * WRITES
        wide = jnp.int32 if pool.dtype == jnp.int8 else jnp.float32
        token = jax.lax.broadcasted_iota(jnp.int32, block, 1)

        def place(i):
            where = pl.multiple_of(start_ref[at + i] % page_size, width)
            return pool_ref.at[page_ref[at + i], :, pl.ds(where, width)]

        def reading(i):
            return pltpu.make_async_copy(place(i), held.at[i], semaphore.at[i])

        def writing(i):
            return pltpu.make_async_copy(held.at[i], place(i), semaphore.at[i])

        def change(i):
            reading(i).wait()
            own = (token >= low_ref[at + i]) & (token < high_ref[at + i])
            held[i] = jnp.where(own, fresh_ref[i].astype(wide), held[i].astype(wide)).astype(pool.dtype)
            writing(i).start()

        for act in (lambda i: reading(i).start(), change, lambda i: writing(i).wait()):
            for i in range(WRITES):
                pl.when(page_ref[at + i] < num_pages)(functools.partial(act, i))

    # Else XLA may take a small pool into on-chip memory whole, for every layer of it.
    pool_spec = pl.BlockSpec(memory_space=pltpu.HBM)
    fresh_spec = pl.BlockSpec((WRITES, *block), lambda i, *_: (i, *[0] * len(block)))
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(most // WRITES,),
            in_specs=[fresh_spec, pool_spec],
            out_specs=pool_spec,
            scratch_shapes=[pltpu.VMEM((WRITES, *block), pool.dtype), pltpu.SemaphoreType.DMA((WRITES,))],
        ),
        out_shape=pltpu.HBM(pool.shape, pool.dtype),
        input_output_aliases={5: 0},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_BYTES),
        cost_estimate=pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=3 * fresh.nbytes),
        name="write_int4_pages",
    )(page, start, low, high, fresh, pool)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Blocks of `rows` rows of one sequence each, in scalars of one a block."""

    sequence: Int[Array, "I"]
    position: Int[Array, "I"]  # Of its first row.
    begin: Int[Array, "I"]  # First block of tokens that it sees,
    end: Int[Array, "I"]  # past the last; of a block without rows, as `begin`.
    before: Int[Array, "I"]  # Blocks of tokens that earlier blocks of rows see.
    following: Int[Array, "I"]  # The next block with rows; past the last where there is none.
    length: Int[Array, "I"]  # Tokens up to its last row's.


def _blocks_of(
    query_starts: Array, kv_lengths: Array, count: int, rows: int, tokens: int, window: int | None
) -> tuple[_Blocks, Array]:
    """And the first row of each."""
    ends = jnp.cumsum(-(-jnp.diff(query_starts) // rows), dtype=jnp.int32)
    sequence, number = _sequence_of(ends, count)
    live = jnp.arange(count) < ends[-1]
    first = query_starts[sequence] + number * rows
    position = kv_lengths[sequence] - query_starts[sequence + 1] + first
    length = jnp.minimum(position + rows, kv_lengths[sequence])
    begin = jnp.zeros_like(position) if window is None else jnp.maximum(position - window + 1, 0) // tokens
    end = jnp.where(live, -(-length // tokens), begin)
    before = jnp.cumsum(end - begin, dtype=jnp.int32) - (end - begin)
    following = jnp.where(jnp.arange(1, count + 1) < ends[-1], jnp.arange(1, count + 1), count).astype(jnp.int32)
    return _Blocks(sequence, position, begin, end, before, following, length), first


def _attend(
    q: Float[Array, "T N H"],
    kv_pages: Int4Pages,
    query_starts: Int[Array, "B+1"],
    kv_lengths: Int[Array, "B"],
    page_table: Int[Array, "B P"],
    max_query_len: int,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Float[Array, "T N H"]:
    """Attention over pages that hold the rows' own keys and values already."""
    (T, N, H), (B, P) = q.shape, page_table.shape
    _, K, page_size, _ = kv_pages.values.shape
    G, rows = N // K, 1 if max_query_len == 1 else min(T, BLOCK_ROWS)
    M = -(-rows * G // 16) * 16  # Rows of a product, whole tiles.
    pages = min(P, max(1, BLOCK_KV // page_size))
    tokens, count = pages * page_size, B if max_query_len == 1 else T // rows + B
    table = jnp.pad(page_table, ((0, 0), (0, -P % pages)))
    blocks, first = _blocks_of(query_starts, kv_lengths, count, rows, tokens, window)
    own = q[jnp.clip(first[:, None] + jnp.arange(rows, dtype=jnp.int32)[None], 0, T - 1)]
    own = jnp.einsum("IRKGH->IKRGH", own.reshape(count, rows, K, G, H)).reshape(count, K, rows * G, H)
    own = jnp.pad(own, ((0, 0), (0, 0), (0, M - rows * G), (0, 0)))
    exact = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None

    at_lanes = range(0, page_size, LANES)

    def exactly(widened):
        """In float32 the offset is taken off before the product, whose sums would round it."""
        return widened if exact is None else widened.astype(jnp.float32) - OFFSET

    def too_much(factors):
        """What the offset adds to a product with these rows."""
        return OFFSET * jnp.sum(factors.astype(jnp.float32), axis=1, keepdims=True) if exact is None else 0.0

    def body(*refs):
        at, (table_ref, q_ref, values_hbm, scales_hbm, out_ref, values, scales, top, total, sums, semaphore) = (
            _Blocks(*refs[:7]),
            refs[7:],
        )
        i = pl.program_id(0)

        def each_copy(block, turn, act):
            """Of the pages that there are, into the buffer of that turn."""
            slot = (at.before[block] + turn - at.begin[block]) % 2
            for p in range(pages):
                number = turn * pages + p

                @pl.when(number * page_size < at.length[block])
                def _(p=p, number=number):
                    page = table_ref[at.sequence[block], number]
                    act(pltpu.make_async_copy(values_hbm.at[page], values.at[slot, p], semaphore.at[slot]))
                    act(pltpu.make_async_copy(scales_hbm.at[page], scales.at[slot, p], semaphore.at[slot]))

        top[...] = jnp.full_like(top, -1e30)  # Finite, so that a row that sees nothing of a block stays as it was.
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)
        started = at.end[i] > at.begin[i]
        lane, place = (jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), axis) for axis in (0, 1))
        strewn = (lane == _token_of(place)).astype(jnp.bfloat16)  # Takes lanes to where `_widened` has their tokens.

        @pl.when(started & (at.before[i] == 0))
        def _():
            each_copy(i, at.begin[i], lambda copy: copy.start())

        def turn(j, _):
            more = j + 1 < at.end[i]
            block = jnp.where(more, i, at.following[i])

            @pl.when(block < count)
            def _():
                each_copy(block, jnp.where(more, j + 1, at.begin[jnp.minimum(block, count - 1)]), lambda c: c.start())

            each_copy(i, j, lambda copy: copy.wait())
            slot = (at.before[i] + j - at.begin[i]) % 2
            column = j * tokens + _token_of(jax.lax.broadcasted_iota(jnp.int32, (M, tokens), 1))
            row = at.position[i] + jax.lax.broadcasted_iota(jnp.int32, (M, tokens), 0) // G
            seen = (column <= row) & (column < at.length[i])
            if window is not None:
                seen &= column > row - window
            in_order = jnp.concatenate(
                [scales[slot, p, :, at : at + LANES].astype(jnp.float32) for at in at_lanes for p in range(pages)]
            )
            number = jax.lax.broadcasted_iota(jnp.int32, in_order.shape, 0) // (2 * K)
            token = j * tokens + number % pages * page_size + number // pages * LANES
            token = token + jax.lax.broadcasted_iota(jnp.int32, in_order.shape, 1)
            held = token < at.length[i]  # What nobody sees may hold anything, NaN included.
            if window is not None:
                held &= token > at.position[i] - window
            in_order = jnp.where(held, in_order, 0.0).astype(jnp.bfloat16)
            in_order = jnp.einsum("RL,LC->RC", in_order, strewn, preferred_element_type=jnp.float32)

            def scale_row(r):
                rows = [(at * pages + p) * 2 * K + r for p in range(pages) for at in range(len(at_lanes))]
                return jnp.concatenate([in_order[row : row + 1] for row in rows], axis=1)

            for head in range(K):
                key, value = _widened(values[slot, :, head].reshape(tokens, H))
                score = jnp.einsum(
                    "MH,SH->MS", q_ref[0, head], exactly(key), preferred_element_type=jnp.float32, precision=exact
                )
                score = score - too_much(q_ref[0, head])
                score = score * (scale_row(2 * head) * scale)
                if softcap is not None:
                    score = softcap * jnp.tanh(score / softcap)
                score = jnp.where(seen, score, -jnp.inf)
                last = top[head][:, :1]
                highest = jnp.maximum(last, jnp.max(score, axis=1, keepdims=True))
                weight, shrink = jnp.exp(score - highest), jnp.exp(last - highest)
                top[head] = jnp.broadcast_to(highest, (M, LANES))
                total[head] = total[head] * shrink + jnp.sum(weight, axis=1, keepdims=True)
                weight = (weight * scale_row(2 * head + 1)).astype(q.dtype)
                more_sums = jnp.einsum(
                    "MS,SH->MH", weight, exactly(value), preferred_element_type=jnp.float32, precision=exact
                )
                sums[head] = sums[head] * shrink + (more_sums - too_much(weight))
            return _

        jax.lax.fori_loop(at.begin[i], at.end[i], turn, None)
        for head in range(K):
            whole = total[head][:, :1]
            out_ref[0, head] = (sums[head] / jnp.where(whole > 0, whole, 1.0)).astype(out_ref.dtype)

    pool_spec = pl.BlockSpec(memory_space=pltpu.HBM)
    of_block = pl.BlockSpec((1, K, M, H), lambda i, *_: (i, 0, 0, 0))
    scalars = (*(getattr(blocks, field.name) for field in dataclasses.fields(blocks)), table)
    out = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(count,),
            in_specs=[of_block, pool_spec, pool_spec],
            out_specs=of_block,
            scratch_shapes=[
                pltpu.VMEM((2, pages, K, page_size, H), jnp.int8),  # One read, one computed on.
                pltpu.VMEM((2, pages, 2 * K, page_size), jnp.bfloat16),
                pltpu.VMEM((K, M, LANES), jnp.float32),
                pltpu.VMEM((K, M, LANES), jnp.float32),
                pltpu.VMEM((K, M, H), jnp.float32),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(own.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_BYTES),
        cost_estimate=_cost(q, kv_pages, page_table, count),
        name="int4_paged_attention",
    )(*scalars, own, kv_pages.values, kv_pages.scales)

    row = jnp.arange(T, dtype=jnp.int32)
    sequence, number = _sequence_of(query_starts[1:], T)
    ends = jnp.cumsum(-(-jnp.diff(query_starts) // rows), dtype=jnp.int32)
    block = jnp.where(sequence > 0, ends[sequence - 1], 0) + number // rows
    live = row < query_starts[B]
    out = out[:, :, : rows * G].reshape(count, K, rows, G, H)
    out = out[jnp.where(live, block, 0), :, number % rows].reshape(T, N, H)
    return jnp.where(live[:, None, None], out, jnp.zeros((), out.dtype))


def _token_of(place: Int[Array, "..."]) -> Int[Array, "..."]:
    """The token, in the order of memory, that `_widened` puts at a place: of each 128 the even ones, then the odd."""
    at = place % LANES
    return place - at + 2 * (at % (LANES // 2)) + at // (LANES // 2)


def _widened(both: Int[Array, "S H"]) -> tuple[Float[Array, "S H"], Float[Array, "S H"]]:
    """Keys and values in bfloat16, each too large by `OFFSET`, in the order of `_token_of`.

    A word of 32 bits holds a channel of four tokens. Two of them are widened at once by the bits of bfloat16
    themselves: 0x4300 is 128, whose last bits count ones.
    """
    S, H = both.shape
    words = pltpu.bitcast(both, jnp.int32)

    def half(shift):
        parts = []
        for odd in (0, 8):  # Tokens 0 and 2 of a word, then 1 and 3.
            bits = (jax.lax.shift_right_logical(words, shift + odd) & 0x000F000F) ^ 0x43084308
            parts.append(pltpu.bitcast(bits, jnp.bfloat16).reshape(S // LANES, LANES // 2, H))
        return jnp.concatenate(parts, axis=1).reshape(S, H)

    return half(0), half(4)


def _cost(q: Array, kv_pages: Int4Pages, page_table: Array, count: int) -> pl.CostEstimate:
    """Of every sequence at the full width of the page table, each page read once a block of its rows."""
    T, N, H = q.shape
    num_pages, _, page_size, _ = kv_pages.values.shape
    P = page_table.shape[1]
    page_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(kv_pages)) // num_pages
    return pl.CostEstimate(
        flops=4 * T * N * H * P * page_size,
        transcendentals=T * N * P * page_size,
        bytes_accessed=count * P * page_bytes + 2 * q.nbytes,
    )
