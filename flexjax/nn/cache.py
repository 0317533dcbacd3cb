"""What layers keep of earlier tokens, as leaves that state shapes, dtypes and logical axes, and where they lie.

A model lists what each of its layers keeps (`flexjax.model.PagedKV`, `State`); a cache holds it in one of two forms:

  in rows   `cache[layer]` is a tuple with a leaf for each thing that the layer keeps.
  stacked   `cache[pool]` is one leaf with a leading axis, "layers", of all layers that keep such a thing.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from flexjax.kernels.ragged_paged_attention import LARGEST, Int4Pages, ScaledPages
from flexjax.model import CacheLeaf, CausalLM, Kept, PagedKV, State

Kind = PagedKV | State


@dataclasses.dataclass(frozen=True)
class Pool:
    """What several layers keep of one kind, stacked: the `ordinal`-th thing of each of them."""

    kind: Kind
    ordinal: int
    layers: tuple[int, ...]


class Layout:
    """Where the cache of a model holds what each layer keeps."""

    def __init__(self, kept: Sequence[Kept], stacked: bool):
        self.kept, self.stacked = tuple(kept), stacked
        layers: dict[tuple[Kind, int], list[int]] = {}
        for layer, kinds in enumerate(self.kept):
            for ordinal, kind in enumerate(kinds):
                layers.setdefault((kind, ordinal), []).append(layer)
        self.pools = tuple(Pool(*key, tuple(found)) for key, found in layers.items())

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of the layers with pages, each size once: layers of one share a page table."""
        kinds = (kind for kinds in self.kept for kind in kinds)
        return tuple(dict.fromkeys(kind.window for kind in kinds if isinstance(kind, PagedKV)))

    def places(self, layer: int) -> tuple[tuple[int, int], ...]:
        """Stacked, of each thing that a layer keeps: its pool, and the layer's index there."""
        found = []
        for key in enumerate(self.kept[layer]):
            number = next(i for i, pool in enumerate(self.pools) if (pool.ordinal, pool.kind) == key)
            found.append((number, self.pools[number].layers.index(layer)))
        return tuple(found)

    def paged(self, num_pages: int | Sequence[int], page_size: int, num_slots: int, dtype: Any) -> list[Any]:
        """The cache of `CausalLM.__call__`, with so many pages for the layers of each of `windows` (or for all alike).

        Pages are `[num_pages, page_size, K, 2, H]`, with keys at index 0 and values at 1 of the fourth axis; or stacked
        `[L, num_pages, page_size, 2 K, H]`, which is the same in memory: in fewer bits a TPU would pad the pairs. In
        int8 and float8 they are those of `ScaledPages`, and in int4 `Int4Pages`. A state is `[num_slots, …]`.
        """
        each = dict.fromkeys(self.windows, num_pages) if isinstance(num_pages, int) else {}
        each = each or dict(zip(self.windows, num_pages, strict=True))  # type: ignore[arg-type]

        def leaf(kind: Kind, lead: tuple[int, ...]) -> Any:
            if isinstance(kind, State):
                return CacheLeaf((*lead, num_slots, *kind.shape), kind.dtype, (*_names(lead), "slots", *kind.axes))
            return _pages(kind, lead, each[kind.window], page_size, dtype)

        return self._made(leaf)

    def dense(self, batch_size: int, length: int, dtype: Any) -> list[Any]:
        """The cache of `CausalLM.dense`: keys and values are `[B, S, K, 2, H]`, a state is `[B, …]`; stacked with a
        leading axis of layers."""

        def leaf(kind: Kind, lead: tuple[int, ...]) -> Any:
            if isinstance(kind, State):
                return CacheLeaf((*lead, batch_size, *kind.shape), kind.dtype, (*_names(lead), "batch", *kind.axes))
            return _rectangle(kind, lead, (batch_size, length), ("batch", "length"), dtype)

        return self._made(leaf)

    def _made(self, leaf: Callable[[Kind, tuple[int, ...]], Any]) -> list[Any]:
        if self.stacked:
            return [leaf(pool.kind, (len(pool.layers),)) for pool in self.pools]
        return [tuple(leaf(kind, ()) for kind in kinds) for kinds in self.kept]


def layout_of(model: CausalLM) -> Layout:
    """That of a cache of this form of the model."""
    return Layout(model.kept(), model.loops)


def _pages(kind: PagedKV, lead: tuple[int, ...], num_pages: int, page_size: int, dtype: Any) -> Any:
    if jnp.dtype(dtype) == jnp.int4:
        return _int4(kind, lead, num_pages, page_size)
    leaf = _rectangle(kind, lead, (num_pages, page_size), ("pages", "page"), dtype)
    if lead:
        *outer, num_heads, two, head_dim = leaf.shape
        axes = tuple(axis for axis in leaf.axes if axis is not None)
        leaf = dataclasses.replace(leaf, shape=(*outer, two * num_heads, head_dim), axes=axes, paired=True)
    return _scaled(kind, lead, leaf) if jnp.dtype(dtype).name in LARGEST else leaf


def _rectangle(
    kind: PagedKV, lead: tuple[int, ...], leading: tuple[int, int], names: tuple[str, str], dtype: Any
) -> CacheLeaf:
    shape = (*lead, *leading, kind.kv_heads, 2, kind.head_dim)
    return CacheLeaf(shape, dtype, (*_names(lead), *names, "kv_heads", None, "head_dim"), kind.copies)


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
