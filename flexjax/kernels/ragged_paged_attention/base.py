"""The formula of ragged paged attention in plain JAX: one token at a time, obviously right, slow."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num


def ragged_paged_attention(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    kv_pages: Num[Array, "num_pages page_size K 2 H"],
    query_starts: Int[Array, "B+1"],
    kv_lengths: Int[Array, "B"],
    page_table: Int[Array, "B P"],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    max_query_len: int,
    kv_scale: float | None = None,
) -> tuple[Float[Array, "T N H"], Num[Array, "num_pages page_size K 2 H"]]:
    """Attention of every row over its own sequence's pages; `api.py` states the contract."""
    del max_query_len  # The formula needs no bound.
    T, N, H = q.shape
    num_pages, page_size, K, _, _ = kv_pages.shape
    B, P = page_table.shape

    row = jnp.arange(T)
    live = row < query_starts[B]
    sequence = jnp.clip(jnp.searchsorted(query_starts[1:], row, side="right"), 0, B - 1)
    position = kv_lengths[sequence] - query_starts[sequence + 1] + row

    page = page_table[sequence, position // page_size]
    page = jnp.where(live, page, num_pages)  # Out of bounds: the write is dropped.
    new = jnp.stack([k, v], axis=2)
    if kv_scale is not None:
        new = jnp.clip(jnp.round(new.astype(jnp.float32) / kv_scale), -127, 127)
    new = new.astype(kv_pages.dtype)
    kv_pages = kv_pages.at[page, position % page_size].set(new, mode="drop")

    def attend(row_args):
        q_NxH, b, p, is_live = row_args
        kv = kv_pages[page_table[b]].reshape(P * page_size, K, 2, H).astype(jnp.float32)
        if kv_scale is not None:
            kv = kv * kv_scale
        q_KxGxH = q_NxH.reshape(K, N // K, H).astype(jnp.float32)
        scores = jnp.einsum("KGH,SKH->KGS", q_KxGxH, kv[:, :, 0], precision="highest") * scale
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        s = jnp.arange(P * page_size)[None, None]
        seen = s <= p if window is None else (s <= p) & (s > p - window)
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        # Rows that nobody sees may hold anything, NaN included; a zero weight would not silence them.
        values = jnp.where(seen[0, 0, :, None, None], kv[:, :, 1], 0.0)
        out = jnp.einsum("KGS,SKH->KGH", weights, values, precision="highest").reshape(N, H)
        return jnp.where(is_live, out, 0.0).astype(q.dtype)

    return jax.lax.map(attend, (q, sequence, position, live)), kv_pages
