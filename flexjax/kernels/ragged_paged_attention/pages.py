"""What pages hold: keys and values in the dtypes that a cache may have, and how they get in and out in plain JAX."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

# Dtypes of pages that hold x / kv_scale, and the largest number that they hold.
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


Pages = Num[Array, "num_pages page_size heads 2 H"] | Int4Pages


def sizes(kv_pages: Any) -> tuple[int, int, int, int]:
    """Pages, tokens of a page, kv heads, head dim."""
    if isinstance(kv_pages, Int4Pages):
        num_pages, K, page_size, H = kv_pages.values.shape
    else:
        num_pages, page_size, K, _, H = kv_pages.shape
    return num_pages, page_size, K, H


def dtype_name(kv_pages: Pages) -> str:
    return "int4" if isinstance(kv_pages, Int4Pages) else kv_pages.dtype.name


def one_pool(stacked: Any) -> tuple[Pages, int]:
    """The pages of stacked layers, `[L, num_pages, page_size, 2 K, H]` or `Int4Pages` with a leading axis, as those of
    one layer, and how many each has: page p of layer l is page l * num_pages + p."""
    if isinstance(stacked, Int4Pages):
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked), stacked.values.shape[1]
    _, num_pages, page_size, KV, H = stacked.shape
    return stacked.reshape(-1, page_size, KV // 2, 2, H), num_pages


def encoded(x: Float[Array, "..."], dtype: Any, scale: float | None) -> Num[Array, "..."]:
    """Keys and values as an array of pages holds them: in its dtype, or as near as it comes to x / scale."""
    if scale is None:
        return x.astype(dtype)
    largest = LARGEST[jnp.dtype(dtype).name]
    x = jnp.clip(x.astype(jnp.float32) / scale, -largest, largest)  # Else float8 would turn the larger into NaN.
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
    kv_pages: Pages,
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    page: Int[Array, "T"],
    row: Int[Array, "T"],
    kv_scale: float | None,
) -> Pages:
    """The pages with key and value t at `page[t], row[t]`; past the last page nothing is written."""
    if isinstance(kv_pages, Int4Pages):
        values, scales = int4_encoded(k, v)
        return Int4Pages(
            kv_pages.values.at[page, :, row].set(values, mode="drop"),
            kv_pages.scales.at[page, :, row].set(scales, mode="drop"),
        )
    new = encoded(jnp.stack([k, v], axis=2), kv_pages.dtype, kv_scale)
    return kv_pages.at[page, row].set(new, mode="drop")


def read(
    kv_pages: Pages, table: Int[Array, "B P"], kv_scale: float | None
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Float32 keys and values of the pages of the table."""
    _, page_size, K, H = sizes(kv_pages)
    B, P = table.shape
    if isinstance(kv_pages, Int4Pages):
        both = jnp.einsum("BPKSH->BPSKH", kv_pages.values[table])
        scales = jnp.einsum("BPKCS->BPSKC", kv_pages.scales[table].reshape(B, P, K, 2, page_size))
        halves = jnp.stack([(both << 4) >> 4, both >> 4], axis=4).astype(jnp.float32)
        kv = halves * scales[..., None].astype(jnp.float32)
    else:
        kv = kv_pages[table].astype(jnp.float32)
        if kv_scale is not None:
            kv = kv * kv_scale
    kv = kv.reshape(B, P * page_size, K, 2, H)
    return kv[:, :, :, 0], kv[:, :, :, 1]
