"""Ragged paged attention in plain JAX that runs anywhere: blocks of rows against blocks of pages."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flexjax.kernels.ragged_paged_attention.pages import BarePages, read, sizes, written
from flexjax.kernels.ragged_paged_attention.scaled import serves_scaled_pages

BLOCK_ROWS = 64  # Rows of one sequence at a time.
BLOCK_TOKENS = 256  # Keys and values gathered at a time, in whole pages.
# Names of the loops in a compiled program, which cannot tell how often they turn.
ROW_LOOP, PAGE_LOOP = "blocks_of_rows", "blocks_of_pages"


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
    """The contract of `api.py`. No temporary grows with rows times context."""
    T = q.shape[0]
    num_pages, page_size, _, _ = sizes(kv_pages)
    B = page_table.shape[0]

    row = jnp.arange(T)
    live = row < query_starts[B]
    sequence = jnp.clip(jnp.searchsorted(query_starts[1:], row, side="right"), 0, B - 1)
    position = kv_lengths[sequence] - query_starts[sequence + 1] + row
    page = jnp.where(live, page_table[sequence, position // page_size], num_pages)  # Out of bounds: dropped.
    kv_pages = written(kv_pages, k, v, page, position % page_size)

    masks: dict[str, Any] = dict(window=window, softcap=softcap)
    q_scaled = q.astype(jnp.float32) * scale
    if max_query_len == 1:
        first = jnp.minimum(query_starts[:B], T - 1)
        has_row = query_starts[1:] > query_starts[:B]
        out = _attend(
            q_scaled[first][:, None], (kv_lengths - 1)[:, None], has_row[:, None], kv_pages, page_table, **masks
        )
        out = out[sequence, 0]
    else:
        rows = min(max_query_len, BLOCK_ROWS)
        out = _by_blocks(q_scaled, kv_pages, query_starts, kv_lengths, page_table, rows, **masks)
    return jnp.where(live[:, None, None], out, 0.0).astype(q.dtype), kv_pages


def _by_blocks(
    q: Float[Array, "T N H"],
    kv_pages: BarePages,
    query_starts: Int[Array, "B+1"],
    kv_lengths: Int[Array, "B"],
    page_table: Int[Array, "B P"],
    rows: int,
    **masks: Any,
) -> Float[Array, "T N H"]:
    """Each sequence's rows in blocks of `rows`, one block after the other."""
    T, N, H = q.shape
    blocks = -(-jnp.diff(query_starts) // rows)
    ends = jnp.cumsum(blocks)
    q = jnp.pad(q, ((0, rows), (0, 0), (0, 0)))

    def step(i, out):
        b = jnp.searchsorted(ends, i, side="right")
        first = query_starts[b] + (i - ends[b] + blocks[b]) * rows
        row = first + jnp.arange(rows)
        position = kv_lengths[b] - query_starts[b + 1] + row
        block = _attend(
            jax.lax.dynamic_slice_in_dim(q, first, rows)[None],
            position[None],
            (row < query_starts[b + 1])[None],
            kv_pages,
            page_table[b][None],
            **masks,
        )
        # Rows past the sequence's end are written too; the next block, which begins there, overwrites them.
        return jax.lax.dynamic_update_slice_in_dim(out, block[0], first, axis=0)

    with jax.named_scope(ROW_LOOP):
        return jax.lax.fori_loop(0, ends[-1], step, jnp.zeros((T + rows, N, H)))[:T]


def _attend(
    q: Float[Array, "B T N H"],
    position: Int[Array, "B T"],
    live: Bool[Array, "B T"],
    kv_pages: BarePages,
    page_table: Int[Array, "B P"],
    *,
    window: int | None,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    """Float32 attention of a dense block of scaled queries, by an online softmax over blocks of pages."""
    B, T, N, H = q.shape
    _, page_size, K, _ = sizes(kv_pages)
    P = page_table.shape[1]
    pages = min(P, max(BLOCK_TOKENS // page_size, 1))
    S = pages * page_size
    page_table = jnp.pad(page_table, ((0, 0), (0, -P % pages)))
    q = q.reshape(B, T, K, N // K, H)

    def step(i, carry):
        top, total, values = carry
        table = jax.lax.dynamic_slice_in_dim(page_table, i * pages, pages, axis=1)
        key, value = read(kv_pages, table)
        scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, key, precision="highest")
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        s = (i * S + jnp.arange(S))[None, None, :]
        seen = (s <= position[..., None]) & live[..., None]
        if window is not None:
            seen &= s > position[..., None] - window
        scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        weights = jnp.exp(scores - new_top)
        shrink = jnp.exp(top - new_top)
        total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
        # Rows of pages that nobody sees may hold anything, NaN included.
        value = jnp.where(jnp.any(seen, axis=1)[:, :, None, None], value, 0.0)
        values = values * shrink + jnp.einsum("BKGTS,BSKH->BKGTH", weights, value, precision="highest")
        return new_top, total, values

    shape = (B, K, N // K, T)
    # Finite, so that a block of which a row sees nothing leaves the row as it was.
    carry = (jnp.full((*shape, 1), -1e30), jnp.zeros((*shape, 1)), jnp.zeros((*shape, H)))
    oldest = 0
    if window is not None:
        oldest = jnp.maximum(jnp.min(jnp.where(live, position, P * page_size)) - window + 1, 0)
    newest = jnp.max(jnp.where(live, position, -1))
    with jax.named_scope(PAGE_LOOP):
        _, total, values = jax.lax.fori_loop(oldest // S, newest // S + 1, step, carry)
    out = jnp.where(total > 0, values / total, 0.0)
    return jnp.einsum("BKGTH->BTKGH", out).reshape(B, T, N, H)
