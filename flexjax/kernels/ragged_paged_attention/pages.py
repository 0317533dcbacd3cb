"""What pages hold: keys and values in the dtypes that a cache may have, and how they get in and out in plain JAX."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, UInt

# Dtypes of `ScaledPages`, and the largest number that each holds.
LARGEST: Mapping[str, float] = {"int8": 127.0, "float8_e4m3fn": 448.0}
INT4_LARGEST = 7


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int4Pages:
    """Keys and values of four bits, with a scale for each key and each value of each kv head.

    A byte is one channel of one token: the key in its lower four bits, the value in its upper four, both in two's
    complement and within ±7. Rows 2 m and 2 m + 1 of `scales` are of the keys and values of kv head m.
    docs/decisions/0012 says why so.
    """

    values: Int[Array, "num_pages K page_size H"]  # int8
    scales: Float[Array, "num_pages 2*K page_size"]  # bfloat16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledPages:
    """Keys and values as int8 or float8_e4m3fn: the nearest to x / s, with a scale s of its own for each channel of
    each kv head, keys (index 0) and values (1) apart.

    Invariants:
      - Every scale is a power of two, so that dividing a key by it, and multiplying a query by it, rounds nothing.
      - `clipped` counts, modulo 2**32, the numbers that live rows wrote beyond the dtype's largest, which stands for
        them.
    docs/decisions/0018 says why so.
    """

    values: Num[Array, "num_pages page_size heads 2 H"]  # int8 or float8_e4m3fn
    scales: Float[Array, "heads 2 H"]  # float32
    clipped: UInt[Array, "heads 2"]  # uint32


BarePages = Num[Array, "num_pages page_size heads 2 H"] | Int4Pages  # As a body has them that knows no scales.
Pages = BarePages | ScaledPages


def sizes(kv_pages: Any) -> tuple[int, int, int, int]:
    """Pages, tokens of a page, kv heads, head dim."""
    if isinstance(kv_pages, Int4Pages):
        num_pages, K, page_size, H = kv_pages.values.shape
    else:
        num_pages, page_size, K, _, H = (kv_pages.values if isinstance(kv_pages, ScaledPages) else kv_pages).shape
    return num_pages, page_size, K, H


def dtype_name(kv_pages: Pages) -> str:
    if isinstance(kv_pages, ScaledPages):
        return kv_pages.values.dtype.name
    return "int4" if isinstance(kv_pages, Int4Pages) else kv_pages.dtype.name


def one_pool(stacked: Any, layer: Int[Array, ""]) -> tuple[Pages, int]:
    """The pages of stacked layers, each array of `Pages` with a leading axis and `[…, 2 K, H]` in place of
    `[…, K, 2, H]`, as those of one layer, and how many each has: page p of layer l is page l * num_pages + p. Scales
    and counts are those of `layer`."""
    if isinstance(stacked, Int4Pages):
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked), stacked.values.shape[1]
    if isinstance(stacked, ScaledPages):
        values, num_pages = one_pool(stacked.values, layer)
        assert not isinstance(values, Int4Pages | ScaledPages)
        return ScaledPages(values, stacked.scales[layer], stacked.clipped[layer]), num_pages
    _, num_pages, page_size, KV, H = stacked.shape
    return stacked.reshape(-1, page_size, KV // 2, 2, H), num_pages


def put_back(pool: Pages, stacked: Any, layer: Int[Array, ""]) -> Any:
    """The stacked layers whose pages `one_pool` gave, with what has become of them."""
    if isinstance(pool, ScaledPages):
        values = pool.values.reshape(stacked.values.shape)
        return ScaledPages(values, stacked.scales, stacked.clipped.at[layer].set(pool.clipped))
    return jax.tree.map(lambda new, old: new.reshape(old.shape), pool, stacked)


def rescaled(cache: Any, scales: Sequence[Float[Array, "..."]]) -> Any:
    """A cache with its `ScaledPages`, in their order, at these scales, `[K, 2, H]` or of stacked layers `[L, K, 2, H]`;
    each kv head's as often in a row as the pages hold it."""

    def with_scales(pages: Any, own: Array) -> Any:
        copies = pages.scales.shape[-3] // own.shape[-3]
        return dataclasses.replace(pages, scales=jnp.repeat(own, copies, axis=-3).astype(pages.scales.dtype))

    left = list(scales)
    found = [with_scales(x, left.pop(0)) if _is_scaled(x) else x for x in jax.tree.leaves(cache, is_leaf=_is_scaled)]
    assert not left
    return jax.tree.unflatten(jax.tree.structure(cache, is_leaf=_is_scaled), found)


def num_clipped(cache: Any) -> UInt[Array, ""] | None:
    """Numbers clipped in all layers of a cache, modulo 2**32; None where none of its pages are `ScaledPages`."""
    counts = [pages.clipped for pages in jax.tree.leaves(cache, is_leaf=_is_scaled) if _is_scaled(pages)]
    return jnp.sum(jnp.stack(counts), dtype=jnp.uint32) if counts else None


def numbers_per_token(cache: Any) -> int:
    """Numbers that a token writes into the `ScaledPages` of a cache, copies of heads included: what `num_clipped` is
    a part of."""
    return sum(pages.scales.size for pages in jax.tree.leaves(cache, is_leaf=_is_scaled) if _is_scaled(pages))


def _is_scaled(x: Any) -> bool:
    return isinstance(x, ScaledPages)


def in_units(
    x: Float[Array, "T K H"], scale: Float[Array, "K H"], largest: float, live: Bool[Array, "T"]
) -> tuple[Float[Array, "T K H"], UInt[Array, "K"]]:
    """x / scale, in x's dtype and within ±largest, and how many numbers of live rows lay beyond."""
    wide = x.astype(jnp.float32) / scale[None]
    beyond = (jnp.abs(wide) > largest) & live[:, None, None]
    return jnp.clip(wide, -largest, largest).astype(x.dtype), jnp.sum(beyond, axis=(0, 2), dtype=jnp.uint32)


def encoded(x: Float[Array, "..."], dtype: Any) -> Num[Array, "..."]:
    """Keys and values as an array of pages holds them: in its dtype, whole numbers rounded to nearest."""
    return (jnp.round(x) if jnp.issubdtype(dtype, jnp.integer) else x).astype(dtype)


def int4_encoded(
    k: Float[Array, "T K H"], v: Float[Array, "T K H"]
) -> tuple[Int[Array, "T K H"], Float[Array, "T 2*K"]]:
    """Bytes and scales as `Int4Pages` holds them."""
    new = jnp.stack([k, v], axis=2).astype(jnp.float32)
    scale = (jnp.max(jnp.abs(new), axis=3) * (1 / INT4_LARGEST)).astype(jnp.bfloat16)
    inverse = jnp.where(scale > 0, 1 / scale.astype(jnp.float32), 0.0)
    whole = jnp.round(jnp.clip(new * inverse[..., None], -INT4_LARGEST, INT4_LARGEST)).astype(jnp.int8)
    return (whole[:, :, 0] & 15) | (whole[:, :, 1] << 4), scale.reshape(len(scale), -1)


def written(
    kv_pages: BarePages,
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    page: Int[Array, "T"],
    row: Int[Array, "T"],
) -> BarePages:
    """The pages with key and value t at `page[t], row[t]`; past the last page nothing is written. Where they are
    `ScaledPages`, their bare values are given, and keys and values in their units."""
    if isinstance(kv_pages, Int4Pages):
        values, scales = int4_encoded(k, v)
        return Int4Pages(
            kv_pages.values.at[page, :, row].set(values, mode="drop"),
            kv_pages.scales.at[page, :, row].set(scales, mode="drop"),
        )
    new = encoded(jnp.stack([k, v], axis=2), kv_pages.dtype)
    return kv_pages.at[page, row].set(new, mode="drop")


def read(kv_pages: BarePages, table: Int[Array, "B P"]) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Float32 keys and values of the pages of the table, those of bare values of `ScaledPages` in their units."""
    _, page_size, K, H = sizes(kv_pages)
    B, P = table.shape
    if isinstance(kv_pages, Int4Pages):
        both = jnp.einsum("BPKSH->BPSKH", kv_pages.values[table])
        scales = jnp.einsum("BPKCS->BPSKC", kv_pages.scales[table].reshape(B, P, K, 2, page_size))
        halves = jnp.stack([(both << 4) >> 4, both >> 4], axis=4).astype(jnp.float32)
        kv = halves * scales[..., None].astype(jnp.float32)
    else:
        kv = kv_pages[table].astype(jnp.float32)
    kv = kv.reshape(B, P * page_size, K, 2, H)
    return kv[:, :, :, 0], kv[:, :, :, 1]
