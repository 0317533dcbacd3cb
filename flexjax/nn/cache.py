"""What layers keep of earlier tokens, as leaves that state shapes, dtypes and logical axes.

A leaf a layer; or, where layers are stacked, one of all with a leading axis.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from flexjax.kernels.ragged_paged_attention import LARGEST, Int4Pages, ScaledPages
from flexjax.model import CacheLeaf


@dataclasses.dataclass(frozen=True)
class PagedKV:
    """Keys and values of every token, or of the last `window` ones, in pages."""

    kv_heads: int
    head_dim: int
    window: int | None = None  # tokens
    copies: int = 1  # The most devices that can share a kv head: its query heads.


def paged_leaves(layers: Sequence[PagedKV], stacked: bool, num_pages: int, page_size: int, dtype: Any) -> list[Any]:
    """`[num_pages, page_size, K, 2, H]`, or stacked `[L, num_pages, page_size, 2 K, H]`: in fewer bits a TPU would pad
    the pairs. In int8 and float8 that of `ScaledPages`, and in int4 `Int4Pages`."""
    if jnp.dtype(dtype) == jnp.int4:
        return [_int4(kind, lead, num_pages, page_size) for kind, lead in _leaves(layers, stacked)]
    leaves = _dense(layers, stacked, (num_pages, page_size), ("pages", "page"), dtype)
    if stacked:
        (leaf,) = leaves
        *outer, num_heads, two, head_dim = leaf.shape
        axes = tuple(axis for axis in leaf.axes if axis is not None)
        leaves = [dataclasses.replace(leaf, shape=(*outer, two * num_heads, head_dim), axes=axes, paired=True)]
    if jnp.dtype(dtype).name not in LARGEST:
        return leaves
    return [_scaled(kind, lead, leaf) for (kind, lead), leaf in zip(_leaves(layers, stacked), leaves, strict=True)]


def dense_leaves(layers: Sequence[PagedKV], stacked: bool, batch_size: int, length: int, dtype: Any) -> list[CacheLeaf]:
    """`[B, S, K, 2, H]`, or stacked `[L, B, S, K, 2, H]`."""
    return _dense(layers, stacked, (batch_size, length), ("batch", "length"), dtype)


def _leaves(layers: Sequence[PagedKV], stacked: bool) -> list[tuple[PagedKV, tuple[int, ...]]]:
    """The kind of each leaf, and its leading axis: stacked there is one of all layers, which are of one shape."""
    if not stacked:
        return [(kind, ()) for kind in layers]
    first, *others = layers
    assert all(dataclasses.replace(kind, window=first.window) == first for kind in others)
    return [(first, (len(layers),))]


def _dense(
    layers: Sequence[PagedKV], stacked: bool, leading: tuple[int, int], names: tuple[str, str], dtype: Any
) -> list[CacheLeaf]:
    return [
        CacheLeaf(
            (*lead, *leading, kind.kv_heads, 2, kind.head_dim),
            dtype,
            (*_names(lead), *names, "kv_heads", None, "head_dim"),
            kind.copies,
        )
        for kind, lead in _leaves(layers, stacked)
    ]


def _scaled(kind: PagedKV, lead: tuple[int, ...], values: Any) -> ScaledPages:
    shape, axes = (*lead, kind.kv_heads, 2), (*_names(lead), "kv_heads", None)
    scales: Any = CacheLeaf((*shape, kind.head_dim), jnp.float32, (*axes, "head_dim"), kind.copies)
    clipped: Any = CacheLeaf(shape, jnp.uint32, axes, kind.copies)
    return ScaledPages(values, scales, clipped)


def _int4(kind: PagedKV, lead: tuple[int, ...], num_pages: int, page_size: int) -> Int4Pages:
    def leaf(heads: int, inner: tuple[int, ...], inner_names: tuple[str, ...], dtype: Any, paired: bool) -> Any:
        axes = (*_names(lead), "pages", "kv_heads", *inner_names)
        return CacheLeaf((*lead, num_pages, heads, *inner), dtype, axes, kind.copies, paired)

    K = kind.kv_heads
    values = leaf(K, (page_size, kind.head_dim), ("page", "head_dim"), jnp.int8, False)
    scales = leaf(2 * K, (page_size,), ("page",), jnp.bfloat16, True)
    return Int4Pages(values, scales)


def _names(lead: tuple[int, ...]) -> tuple[str, ...]:
    return ("layers",) if lead else ()
