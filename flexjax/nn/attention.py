"""Grouped-query attention over keys and values that live where the caller says.

Axes: B sequences, T query tokens, S key/value tokens, N query heads, K key/value heads, G = N // K, H head dim.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flexjax.hardware.sharding import TRAINING, constrain, split_ways
from flexjax.kernels.ragged_paged_attention import one_pool, put_back, ragged_paged_attention
from flexjax.model import RaggedBatch
from flexjax.nn.declare import Maker
from flexjax.nn.norm import Norm
from flexjax.nn.rope import RopeTables, rotate

LONG_CONTEXT, QUERY_BLOCK = 1024, 512  # Tokens of a device: from where on training attends in blocks, and how large.
MASKED = -1e30  # Finite, so that a fully masked row stays free of NaN.

# Queries, keys and values of every row → the mixed values and the cache with the rows written.
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]


class Attention(nnx.Module):
    """Grouped-query attention; where keys and values live is the caller's business (`attend`)."""

    def __init__(self, make: Maker, *, qkv_bias: bool = False, out_bias: bool = False, norm_of_heads: Any = None):
        """`norm_of_heads` makes the norm of queries, and that of keys, before the rope."""
        self.query = make.into("embed", "heads", "head_dim", bias=qkv_bias)
        self.key = make.into("embed", "kv_heads", "head_dim", bias=qkv_bias)
        self.value = make.into("embed", "kv_heads", "head_dim", bias=qkv_bias)
        self.out = make.back("heads", "head_dim", "embed", bias=out_bias)
        self.query_norm: Norm | None = norm_of_heads and norm_of_heads()
        self.key_norm: Norm | None = norm_of_heads and norm_of_heads()

    def __call__(self, x: Float[Array, "*T D"], tables: RopeTables, attend: Attend) -> tuple[Array, Any]:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if tables is not None:
            q, k = rotate(q, tables), rotate(k, tables)
        mixed, cache = attend(q.astype(x.dtype), k.astype(x.dtype), v.astype(x.dtype))
        return self.out(mixed), cache


def over_pages(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    pages: Any,
    index: Int[Array, ""] | None,
    batch: RaggedBatch,
    table: int,
    **form: Any,
) -> tuple[Float[Array, "T N H"], Any]:
    """A ragged step's attention: its keys and values are written into their sequences' pages, and each query sees what
    these then hold up to itself. `form` is as `dense_attention` has it.

    `pages` are those of one layer; or of several, stacked, of which `index` says which. `table` is the number of the
    layer's page table, where the batch has several.
    """
    pool, entries = pages, batch.page_table if batch.page_table.ndim == 2 else batch.page_table[table]
    if index is not None:  # All layers' pages are one pool, so that no layer's are sliced out of it.
        pool, num_pages = one_pool(pages, index)
        entries = entries + index * num_pages
    mixed, pool = ragged_paged_attention(
        q, k, v, pool, batch.query_starts, batch.kv_lengths, entries, max_query_len=batch.max_query_len, **form
    )
    return mixed, pool if index is None else put_back(pool, pages, index)


def over_rectangle(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    kv: Float[Array, "... B S K 2 H"] | None,
    index: Int[Array, ""] | None,
    positions: Int[Array, "B T"] | None,
    **form: Any,
) -> tuple[Float[Array, "B T N H"], Any]:
    """A rectangular batch's attention. Without a cache the T tokens see themselves and those before them; with one each
    is written at its own of `positions`, where that lies within it, and sees all up to it."""
    batch_size, length = q.shape[:2]
    if kv is None:
        seen_at = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch_size, length))
    else:
        assert positions is not None
        seen_at = positions
        rows = jnp.broadcast_to(jnp.arange(batch_size)[:, None], (batch_size, length))
        at = (rows, positions) if index is None else (index, rows, positions)
        kv = kv.at[at].set(jnp.stack([k, v], axis=3).astype(kv.dtype), mode="drop")
        own = kv if index is None else kv[index]
        k, v = own[:, :, :, 0].astype(q.dtype), own[:, :, :, 1].astype(q.dtype)
    q = constrain(q, ("batch", "length", "heads", "head_dim"), TRAINING)
    # In training a device's queries see the keys and values of all tokens, which are gathered: without the first
    # constraint XLA may gather what they are made of, and make them everywhere.
    k, v = (constrain(x, ("batch", "length", "kv_heads", "head_dim"), TRAINING) for x in (k, v))
    k, v = (constrain(x, ("batch", None, "kv_heads", "head_dim"), TRAINING) for x in (k, v))
    attention = dense_attention if kv is not None else attention_in_blocks
    return attention(q, k, v, seen_at, **form), kv


def softcapped(x: Array, cap: float | None) -> Array:
    return x if cap is None else cap * jnp.tanh(x / cap)


def dense_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    seen_at: Int[Array, "B T"],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    """softmax(softcap(scale · q kᵀ)) v over the keys s with seen_at - window < s ≤ seen_at.

    Query head n reads key/value head n // G.
    """
    batch_size, length, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    q = q.reshape(batch_size, length, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32) * scale
    scores = softcapped(scores, softcap)
    behind = seen_at[:, :, None] - jnp.arange(k.shape[1], dtype=jnp.int32)[None, None, :]
    visible = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    scores = jnp.where(visible[:, None, None, :, :], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v)
    return mixed.reshape(batch_size, length, num_heads, head_dim)


def attention_in_blocks(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    seen_at: Int[Array, "B T"],
    **form: Any,
) -> Float[Array, "B T N H"]:
    """`dense_attention`, in long contexts a block of each device's queries at a time.

    The scores of a block are computed again in the backward pass, so that those of all never exist together.
    """
    ways = split_ways("length", TRAINING)
    batch_size, length = seen_at.shape
    blocks = length // ways // QUERY_BLOCK
    if length <= ways * LONG_CONTEXT or length % (ways * QUERY_BLOCK):
        return dense_attention(q, k, v, seen_at, **form)

    def split(x: Array) -> Array:  # Into parts of every device's own tokens, so that none changes place.
        x = x.reshape(batch_size, ways, blocks, QUERY_BLOCK, *x.shape[2:])
        return jnp.moveaxis(x, 2, 0).reshape(blocks, batch_size, ways * QUERY_BLOCK, *x.shape[4:])

    def joined(x: Array) -> Array:
        x = x.reshape(blocks, batch_size, ways, QUERY_BLOCK, *x.shape[3:])
        return jnp.moveaxis(x, 0, 2).reshape(batch_size, length, *x.shape[4:])

    @jax.checkpoint
    def block(part: tuple[Array, Array]) -> Array:
        queries = constrain(part[0], ("batch", "length", "heads", "head_dim"), TRAINING)
        return dense_attention(queries, k, v, part[1], **form)

    return joined(jax.lax.map(block, (split(q), split(seen_at))))
