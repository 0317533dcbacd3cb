"""Ragged paged attention on TPUs: JAX's own Pallas kernel, over our pages.

The kernel (jax.experimental.pallas.ops.tpu.ragged_paged_attention) wants keys and values interleaved in one
axis, `[num_pages, page_size, 2 K, H]`, which our `[num_pages, page_size, K, 2, H]` is. It is called here and
not through its own wrapper because that names no cost, and a compiler that is not told counts a kernel as free.
For int4 pages stands pallas_tpu_int4.py.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel
from jaxtyping import Array, Float, Int, Num

from flexjax.kernels.ragged_paged_attention import pallas_tpu_int4
from flexjax.kernels.ragged_paged_attention.pages import LARGEST, BarePages, Int4Pages, encoded
from flexjax.kernels.ragged_paged_attention.scaled import serves_scaled_pages
from flexjax.kernels.tuning import ByChip, on_chip

# Tokens of one sequence read at a time. By the compiler's listing 2048 saves 12 % on v6e and nothing on v5e
# (xla_flags/<chip>/ragged_paged_attention_*_blocks.txt).
BLOCK_KV: int | ByChip = ByChip(1024, {"v6e": 2048})
MAX_BLOCK_PAGES = 16  # More copies in flight spill scalar registers.
BLOCK_QUERIES = 64  # Rows of a prefill at a time.
BLOCK_DECODES = 16  # Rows of pure decoding at a time: every sequence of a block computes all its rows.
VMEM_BYTES = 64 * 2**20  # Of 128 MiB; the rest is XLA's.
LANES = 128  # Of a vector register; the kernel reads whole ones.


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
    """The contract of `api.py`. The declared cost is that of contexts as long as the page table is wide: the most
    that a call can read."""
    if isinstance(kv_pages, Int4Pages):
        return pallas_tpu_int4.ragged_paged_attention(
            q, k, v, kv_pages, query_starts, kv_lengths, page_table,
            scale=scale, window=window, softcap=softcap, max_query_len=max_query_len,
        )  # fmt: skip
    _refuse(q, kv_pages)
    T = q.shape[0]
    num_pages, page_size, K, _, H = kv_pages.shape
    B = page_table.shape[0]

    row = jnp.arange(T, dtype=jnp.int32)
    live = row < query_starts[B]
    # All at once: the search in halves would be a loop of tiny ops in every layer.
    sequence = jnp.sum(query_starts[None, 1:] <= row[:, None], axis=1, dtype=jnp.int32)
    sequence = jnp.minimum(sequence, B - 1)
    position = kv_lengths[sequence] - query_starts[sequence + 1] + row
    page = jnp.where(live, page_table[sequence, position // page_size], num_pages)  # Out of bounds: dropped.
    new = encoded(jnp.stack([k, v], axis=2), kv_pages.dtype).reshape(T, 2 * K, H)
    combined = _write(kv_pages.reshape(num_pages, page_size, 2 * K, H), new, page, position % page_size)

    out = _attend(
        q,
        combined,
        kv_lengths,
        page_table,
        query_starts,
        jnp.sum(query_starts[1:] > query_starts[:B], dtype=jnp.int32)[None],
        scale=scale,
        window=window,
        softcap=softcap,
        max_query_len=max_query_len,
    )
    return jnp.where(live[:, None, None], out, jnp.zeros((), out.dtype)), combined.reshape(kv_pages.shape)


def _refuse(q: Array, kv_pages: Array) -> None:
    num_kv_heads, head_dim = kv_pages.shape[2], q.shape[2]
    if head_dim % LANES:
        raise NotImplementedError(f"head_dim={head_dim} is no multiple of {LANES}, the lanes that the kernel reads")
    served = (jnp.bfloat16, jnp.float32)
    if q.dtype not in served or kv_pages.dtype not in (*served, jnp.int8, jnp.float8_e4m3fn):
        raise NotImplementedError(
            f"q is {q.dtype.name} and kv_pages are {kv_pages.dtype.name}; bfloat16 and float32 are served, and int8 "
            "and float8_e4m3fn in pages"
        )
    sublanes = 2 * num_kv_heads * kv_pages.dtype.itemsize / 4
    if sublanes not in (1, 2, 4) and (sublanes < 8 or sublanes % 8):
        raise NotImplementedError(
            f"the keys and values of {num_kv_heads} heads in {kv_pages.dtype.name} fill {sublanes:g} sublanes of a "
            "tile; 1, 2, 4 or a multiple of 8 are served"
        )


def _write(
    kv_pages: Num[Array, "num_pages page_size KV H"],
    new: Num[Array, "T KV H"],
    page: Int[Array, "T"],
    row: Int[Array, "T"],
) -> Num[Array, "num_pages page_size KV H"]:
    """The pages with `new[t]` at `page[t], row[t]`, in place; past the last page nothing is written.

    By copies from memory to memory: with several kv heads on a device XLA's scatter would have the pages in another
    layout than the kernel, and copy all of them in every layer.
    """
    num_pages = kv_pages.shape[0]

    def body(page_ref, row_ref, new_ref, _, pages_ref, semaphore):
        def copy(t):
            return pltpu.make_async_copy(new_ref.at[t], pages_ref.at[page_ref[t], row_ref[t]], semaphore)

        def each(act):
            def step(t, _):
                pl.when(page_ref[t] < num_pages)(lambda: act(copy(t)))
                return _

            jax.lax.fori_loop(0, new.shape[0], step, None)

        each(lambda one: one.start())
        each(lambda one: one.wait())

    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(1,),
            in_specs=[anywhere, anywhere],
            out_specs=anywhere,
            scratch_shapes=[pltpu.SemaphoreType.DMA],
        ),
        out_shape=jax.ShapeDtypeStruct(kv_pages.shape, kv_pages.dtype),
        input_output_aliases={3: 0},
        cost_estimate=pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=2 * new.size * new.dtype.itemsize),
        name="write_pages",
    )(page, row, new, kv_pages)


def _attend(
    q: Float[Array, "T N H"],
    kv_pages: Num[Array, "num_pages page_size KV H"],
    kv_lengths: Int[Array, "B"],
    page_table: Int[Array, "B P"],
    query_starts: Int[Array, "B+1"],
    num_seqs: Int[Array, "1"],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    max_query_len: int,
) -> Float[Array, "T N H"]:
    """Attention over pages that hold the rows' own keys and values already; rows of nobody get anything."""
    T, N, H = q.shape
    _, page_size, KV, _ = kv_pages.shape
    pages_per_seq = page_table.shape[1]
    unit = 1.0 if kv_pages.dtype.name in LARGEST else None  # Without one the kernel would not widen what it reads.
    block_queries = min(T, BLOCK_DECODES if max_query_len == 1 else BLOCK_QUERIES)
    block_pages = min(pages_per_seq, MAX_BLOCK_PAGES, max(1, on_chip(BLOCK_KV) // page_size))
    heads, kv_heads = kernel.get_min_heads_per_blk(N, KV, q.dtype, kv_pages.dtype)
    by_head = pl.BlockSpec((block_queries, heads, H), lambda h, i, *_: (i, h, 0))
    statistics = pltpu.VMEM((kv_heads // 2, block_queries * N // (KV // 2), LANES), jnp.float32)
    scalars = (kv_lengths, page_table, query_starts, jnp.zeros(2, jnp.int32), num_seqs)
    call = pl.pallas_call(
        functools.partial(
            kernel.ragged_paged_attention_kernel,
            sm_scale=scale,
            sliding_window=window,
            soft_cap=softcap,
            k_scale=unit,
            v_scale=unit,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(N // heads, pl.cdiv(T, block_queries)),
            in_specs=[by_head, pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=by_head,
            scratch_shapes=[
                pltpu.VMEM((2, block_pages, page_size, kv_heads, H), kv_pages.dtype),  # One read, one computed on.
                pltpu.SemaphoreType.DMA((2,)),
                statistics,
                statistics,
                pltpu.VMEM((block_queries, heads, H), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=_cost(q, kv_pages, page_table, max_query_len),
        name="ragged_paged_attention",
    )
    return call(*scalars, q, kv_pages)


def _cost(q: Array, kv_pages: Array, page_table: Array, max_query_len: int) -> pl.CostEstimate:
    """Of every sequence at the full width of the page table, each page read once a block of its rows."""
    T, N, H = q.shape
    B, P = page_table.shape
    S, row_bytes = P * kv_pages.shape[1], kv_pages.shape[2] * H * kv_pages.dtype.itemsize
    reads = max(B, T // BLOCK_QUERIES) if max_query_len > 1 else B
    return pl.CostEstimate(
        flops=4 * T * N * H * S,
        transcendentals=T * N * S,
        bytes_accessed=reads * S * row_bytes + 2 * q.size * q.dtype.itemsize,
    )
