"""Attention over `ScaledPages` by a body that knows nothing of scales."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flexjax.kernels.ragged_paged_attention.pages import LARGEST, Pages, ScaledPages, dtype_name, in_units


def serves_scaled_pages(body: Callable[..., Any]) -> Callable[..., Any]:
    """The body made to take `ScaledPages`, beside what it takes already.

    With s_k and s_v the scales of a head's keys and values, q . (s_k k) is (q s_k) . k, and the sum of weights times
    s_v v is s_v times that of weights times v. So the body is given the bare values of the pages, new keys and values
    in their units and queries times s_k, and its result is multiplied by s_v: scales are powers of two, which round
    nothing. Only float16 has too few exponents for that and is widened.
    """

    @functools.wraps(body)
    def serve(
        q: Float[Array, "T N H"],
        k: Float[Array, "T K H"],
        v: Float[Array, "T K H"],
        kv_pages: Pages,
        query_starts: Int[Array, "B+1"],
        *batch: Array,
        **options: Any,
    ) -> tuple[Float[Array, "T N H"], Pages]:
        if not isinstance(kv_pages, ScaledPages):
            return body(q, k, v, kv_pages, query_starts, *batch, **options)
        largest, live = LARGEST[dtype_name(kv_pages)], jnp.arange(q.shape[0]) < query_starts[-1]
        key, value = kv_pages.scales[:, 0], kv_pages.scales[:, 1]
        k, keys_clipped = in_units(k, key, largest, live)
        v, values_clipped = in_units(v, value, largest, live)
        wide = jnp.dtype(jnp.float32) if q.dtype == jnp.float16 else q.dtype
        out, values = body(
            _times(q, key, wide), k.astype(wide), v.astype(wide), kv_pages.values, query_starts, *batch, **options
        )
        clipped = kv_pages.clipped + jnp.stack([keys_clipped, values_clipped], axis=1)
        return _times(out, value, q.dtype), dataclasses.replace(kv_pages, values=values, clipped=clipped)

    return serve


def _times(x: Float[Array, "T N H"], scale: Float[Array, "K H"], dtype: Any) -> Float[Array, "T N H"]:
    """Each query head's channels times the scales of its kv head."""
    scale = jnp.repeat(scale, x.shape[1] // scale.shape[0], axis=0)
    return (x.astype(jnp.float32) * scale[None]).astype(dtype)
