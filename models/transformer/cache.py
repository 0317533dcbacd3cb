"""What the transformer keeps of earlier tokens, as leaves that state shapes, dtypes and logical axes.

A leaf a layer; or, where layers are stacked, one of all with a leading axis.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from flexjax.kernels.ragged_paged_attention import LARGEST, Int4Pages, ScaledPages
from flexjax.model import CacheLeaf
from models.transformer.config import TransformerConfig


def paged(config: TransformerConfig, stacked: bool, num_pages: int, page_size: int, dtype: Any) -> list[Any]:
    """`[num_pages, page_size, K, 2, H]`, or stacked `[L, num_pages, page_size, 2 K, H]`: in fewer bits a TPU would pad
    the pairs. In int8 and float8 that of `ScaledPages`, and in int4 `Int4Pages`."""
    if jnp.dtype(dtype) == jnp.int4:
        return _int4(config, stacked, num_pages, page_size)
    leaves = dense(config, stacked, (num_pages, page_size), ("pages", "page"), dtype)
    if stacked:
        (leaf,) = leaves
        *outer, num_heads, two, head_dim = leaf.shape
        axes = tuple(axis for axis in leaf.axes if axis is not None)
        leaves = [dataclasses.replace(leaf, shape=(*outer, two * num_heads, head_dim), axes=axes, paired=True)]
    return [_scaled(config, stacked, leaf) for leaf in leaves] if jnp.dtype(dtype).name in LARGEST else leaves


def dense(
    config: TransformerConfig, stacked: bool, leading: tuple[int, int], names: tuple[str, str], dtype: Any
) -> list[CacheLeaf]:
    """`[*leading, K, 2, H]`, or stacked `[L, *leading, K, 2, H]`."""
    shape, axes = (*leading, config.num_kv_heads, 2, config.head_dim), (*names, "kv_heads", None, "head_dim")
    if stacked:
        return [CacheLeaf((config.num_layers, *shape), dtype, ("layers", *axes), _copies(config))]
    return [CacheLeaf(shape, dtype, axes, _copies(config)) for _ in config.layers]


def _scaled(config: TransformerConfig, stacked: bool, values: Any) -> ScaledPages:
    layers, names = _leading(config, stacked)
    axes = (*names, "kv_heads", None)
    scales: Any = CacheLeaf(
        (*layers, config.num_kv_heads, 2, config.head_dim), jnp.float32, (*axes, "head_dim"), _copies(config)
    )
    clipped: Any = CacheLeaf((*layers, config.num_kv_heads, 2), jnp.uint32, axes, _copies(config))
    return ScaledPages(values, scales, clipped)


def _int4(config: TransformerConfig, stacked: bool, num_pages: int, page_size: int) -> list[Int4Pages]:
    layers, names = _leading(config, stacked)

    def leaf(heads: int, inner: tuple[int, ...], inner_names: tuple[str, ...], dtype: Any, paired: bool) -> Any:
        axes = (*names, "pages", "kv_heads", *inner_names)
        return CacheLeaf((*layers, num_pages, heads, *inner), dtype, axes, _copies(config), paired)

    K = config.num_kv_heads
    values = leaf(K, (page_size, config.head_dim), ("page", "head_dim"), jnp.int8, False)
    scales = leaf(2 * K, (page_size,), ("page",), jnp.bfloat16, True)
    return [Int4Pages(values, scales)] * (1 if stacked else config.num_layers)


def _leading(config: TransformerConfig, stacked: bool) -> tuple[tuple[int, ...], tuple[str, ...]]:
    return ((config.num_layers,), ("layers",)) if stacked else ((), ())


def _copies(config: TransformerConfig) -> int:
    """Devices that can share a kv head."""
    return config.num_heads // config.num_kv_heads
