"""Ragged paged attention: the contract, and which body serves it."""

from jaxtyping import Array, Float, Int

from flexjax.kernels.ragged_paged_attention import base


def ragged_paged_attention(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    kv_pages: Float[Array, "num_pages page_size K 2 H"],
    query_starts: Int[Array, "B+1"],
    kv_lengths: Int[Array, "B"],
    page_table: Int[Array, "B P"],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    max_query_len: int,
) -> tuple[Float[Array, "T N H"], Float[Array, "num_pages page_size K 2 H"]]:
    """Attention of every row over its sequence's pages, after the new keys and values are written there."""
    return base.ragged_paged_attention(
        q, k, v, kv_pages, query_starts, kv_lengths, page_table,
        scale=scale, window=window, softcap=softcap, max_query_len=max_query_len,
    )  # fmt: skip
