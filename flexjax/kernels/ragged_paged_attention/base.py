"""The formula of ragged paged attention in plain JAX: one token at a time, obviously right, slow."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flexjax.kernels.ragged_paged_attention.pages import Int4Pages, Pages, ScaledPages


def ragged_paged_attention(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    kv_pages: Pages,
    query_starts: Int[Array, "B+1"],
    kv_lengths: Int[Array, "B"],
    page_table: Int[Array, "B P"],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    max_query_len: int,
) -> tuple[Float[Array, "T N H"], Pages]:
    """Attention of every row over its own sequence's pages; `api.py` states the contract."""
    del max_query_len  # The formula needs no bound.
    T, N, H = q.shape
    if isinstance(kv_pages, Int4Pages):
        num_pages, K, page_size, _ = kv_pages.values.shape
    else:
        num_pages, page_size, K, _, _ = (kv_pages.values if isinstance(kv_pages, ScaledPages) else kv_pages).shape
    B, P = page_table.shape

    row = jnp.arange(T)
    live = row < query_starts[B]
    sequence = jnp.clip(jnp.searchsorted(query_starts[1:], row, side="right"), 0, B - 1)
    position = kv_lengths[sequence] - query_starts[sequence + 1] + row

    page = page_table[sequence, position // page_size]
    page = jnp.where(live, page, num_pages)  # Out of bounds: the write is dropped.
    slot = position % page_size
    if isinstance(kv_pages, Int4Pages):
        values, scales = kv_pages.values, kv_pages.scales
        k4, k_scale = _four_bits(k)
        v4, v_scale = _four_bits(v)
        values = values.at[page, :, slot].set(v4 * 16 + k4 % 16, mode="drop")
        scales = scales.at[page, 0::2, slot].set(k_scale, mode="drop").at[page, 1::2, slot].set(v_scale, mode="drop")
        kv_pages = Int4Pages(values, scales)
    elif isinstance(kv_pages, ScaledPages):
        values = kv_pages.values
        new = jnp.stack([k, v], axis=2).astype(jnp.float32) / kv_pages.scales[None]
        largest = 127 if values.dtype == jnp.int8 else 448
        beyond = jnp.where(live[:, None, None, None], jnp.abs(new) > largest, False)
        new = jnp.clip(new, -largest, largest)
        new = jnp.round(new) if values.dtype == jnp.int8 else new
        kv_pages = ScaledPages(
            values.at[page, slot].set(new.astype(values.dtype), mode="drop"),
            kv_pages.scales,
            kv_pages.clipped + jnp.sum(beyond, axis=(0, 3), dtype=jnp.uint32),
        )
    else:
        new = jnp.stack([k, v], axis=2)
        kv_pages = kv_pages.at[page, slot].set(new.astype(kv_pages.dtype), mode="drop")

    def kv_of(b):
        """Float32 keys and values [S, K, H] of a sequence's pages."""
        if isinstance(kv_pages, Int4Pages):
            both = jnp.swapaxes(kv_pages.values[page_table[b]], 1, 2).reshape(P * page_size, K, H)
            scales = jnp.swapaxes(kv_pages.scales[page_table[b]].astype(jnp.float32), 1, 2)
            scales = scales.reshape(P * page_size, K, 2, 1)
            value = jnp.floor_divide(both, jnp.int8(16))
            key = (both - 16 * value + 8) % 16 - 8
            return key.astype(jnp.float32) * scales[:, :, 0], value.astype(jnp.float32) * scales[:, :, 1]
        values = kv_pages.values if isinstance(kv_pages, ScaledPages) else kv_pages
        kv = values[page_table[b]].reshape(P * page_size, K, 2, H).astype(jnp.float32)
        kv = kv * kv_pages.scales[None] if isinstance(kv_pages, ScaledPages) else kv
        return kv[:, :, 0], kv[:, :, 1]

    def attend(row_args):
        q_NxH, b, p, is_live = row_args
        keys, values = kv_of(b)
        q_KxGxH = q_NxH.reshape(K, N // K, H).astype(jnp.float32)
        scores = jnp.einsum("KGH,SKH->KGS", q_KxGxH, keys, precision="highest") * scale
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        s = jnp.arange(P * page_size)[None, None]
        seen = s <= p if window is None else (s <= p) & (s > p - window)
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        # Rows that nobody sees may hold anything, NaN included; a zero weight would not silence them.
        values = jnp.where(seen[0, 0, :, None, None], values, 0.0)
        out = jnp.einsum("KGS,SKH->KGH", weights, values, precision="highest").reshape(N, H)
        return jnp.where(is_live, out, 0.0).astype(q.dtype)

    return jax.lax.map(attend, (q, sequence, position, live)), kv_pages


def _four_bits(x: Float[Array, "T K H"]) -> tuple[Int[Array, "T K H"], Float[Array, "T K"]]:
    """round(x / s), halves to even, with s = max|x| / 7 over H, which is kept in bfloat16; all zero where s is."""
    scale = (jnp.max(jnp.abs(x.astype(jnp.float32)), axis=-1) * (1 / 7)).astype(jnp.bfloat16)
    inverse = 1 / scale.astype(jnp.float32)[..., None]
    whole = jnp.clip(jnp.round(x.astype(jnp.float32) * inverse), -7, 7)
    return jnp.where(scale[..., None] > 0, whole, 0.0).astype(jnp.int8), scale
