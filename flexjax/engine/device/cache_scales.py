"""The scales of an int8 or float8 cache, and what a cache is really held in."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flexjax.hardware.sharding import SERVING, constrain
from flexjax.kernels.ragged_paged_attention import LARGEST, Int4Pages, ScaledPages
from flexjax.model import CausalLM, PagedKV, RaggedBatch, zeros
from flexjax.nn import Layout, layout_of
from flexjax.refusal import Refusal

MARGIN = 1.25  # At least, from the largest number that was seen in a channel to the first that is clipped.
MOST_CLIPPED = 1e-3  # A share of any layer's keys, or of its values.


def cache_scales(model: CausalLM, dtype: str, seen: np.ndarray, held_out: np.ndarray) -> list[np.ndarray]:
    """Of each leaf of pages, in the order of the cache's: float32 `[K, 2, H]`, stacked `[L, K, 2, H]`, the power of two
    by which each channel of each layer's and kv head's keys (index 0) and values (1) is divided.

    It is the least at which a channel still holds MARGIN times its largest number in the sequences `seen`, token ids
    `[B, T]`. Where the model turns channels into each other by their position (`CausalLM.rotary`), the length
    of both together counts for each. All sequences stand at positions spread over the model's context. On a mesh this
    is called with that in use (`jax.set_mesh`).

    Raises:
      Refusal: more than MOST_CLIPPED of a layer's keys or values of the sequences `held_out` are beyond the largest
        number of `dtype`.
    """
    largest = LARGEST[dtype]
    graph, state = nnx.split(model)
    layout = layout_of(model)
    kinds = _leaves_of_pages(layout)
    rotary = model.rotary or (False,) * len(layout.kept)

    @jax.jit
    def observe(state, tokens, limits):
        tops, beyond = [], []
        found = _keys_and_values(nnx.merge(graph, state), layout, tokens)
        for x, limit, (_, layers) in zip(found, limits, kinds, strict=True):
            turned = [rotary[layer] for layer in layers]
            tops.append(jnp.stack([_largest(own, turns) for own, turns in zip(x, turned, strict=True)]))
            beyond.append(jnp.sum(jnp.abs(x) > limit[:, None], axis=(1, 2, 4)))
        whole = lambda x: constrain(x, (None,) * x.ndim, SERVING)
        return jax.tree.map(whole, (tops, beyond))

    shapes = [(len(layers), kind.kv_heads, 2, kind.head_dim) for kind, layers in kinds]
    tops = observe(state, jnp.asarray(seen, jnp.int32), [jnp.full(shape, jnp.inf) for shape in shapes])[0]
    scales = [_scales(np.asarray(top, np.float64), largest) for top in tops]
    limits = [jnp.asarray(scale * np.float32(largest)) for scale in scales]
    clipped = observe(state, jnp.asarray(held_out, jnp.int32), limits)[1]
    shares = {}
    for count, (kind, layers) in zip(clipped, kinds, strict=True):
        per_layer = np.asarray(count) / (held_out.size * kind.kv_heads * kind.head_dim)
        shares |= {(layer, part): per_layer[i, part] for i, layer in enumerate(layers) for part in (0, 1)}
    _check(shares, dtype)
    return scales if layout.stacked else [scale[0] for scale in scales]


def cache_dtypes(cache: Any, layout: Layout) -> set[str]:
    """The dtypes of the pages of a cache, read from its arrays. Scales, counts and states are not counted."""
    parts = _parts(cache, layout)
    pages = [part for part, kind in parts if isinstance(kind, PagedKV)]
    values = [part.values if isinstance(part, ScaledPages) else part for part in pages]
    return {"int4" if isinstance(part, Int4Pages) else part.dtype.name for part in values}


def state_dtypes(cache: Any, layout: Layout) -> set[str]:
    """The dtypes of the states of a cache, read from its arrays."""
    return {part.dtype.name for part, kind in _parts(cache, layout) if not isinstance(kind, PagedKV)}


def _parts(cache: Any, layout: Layout) -> list[tuple[Any, Any]]:
    """What the cache holds of each layer or pool, and its kind."""
    if layout.stacked:
        return [(leaf, pool.kind) for leaf, pool in zip(cache, layout.pools, strict=True)]
    return [
        (leaf, kind)
        for leaves, kinds in zip(cache, layout.kept, strict=True)
        for leaf, kind in zip(leaves, kinds, strict=True)
    ]


def _leaves_of_pages(layout: Layout) -> list[tuple[PagedKV, tuple[int, ...]]]:
    """The kind and the layers of each leaf of pages, in the order of the cache's leaves."""
    if layout.stacked:
        return [(pool.kind, pool.layers) for pool in layout.pools if isinstance(pool.kind, PagedKV)]
    kinds = ((kind, layer) for layer, kinds in enumerate(layout.kept) for kind in kinds)
    return [(kind, (layer,)) for kind, layer in kinds if isinstance(kind, PagedKV)]


def _keys_and_values(model: CausalLM, layout: Layout, tokens: Int[Array, "B T"]) -> list[Float[Array, "L S K 2 H"]]:
    """Those of every leaf of pages, of one layer or of several, in float32; S is B T."""
    B, T = tokens.shape
    shift = max(model.config.max_position - T, 0) // max(B - 1, 1)
    lengths = jnp.full(B, T, jnp.int32)
    batch = RaggedBatch(
        tokens=tokens.reshape(-1),
        positions=(jnp.arange(B, dtype=jnp.int32)[:, None] * shift + jnp.arange(T, dtype=jnp.int32)[None]).reshape(-1),
        query_starts=jnp.arange(B + 1, dtype=jnp.int32) * T,
        kv_lengths=lengths,
        page_table=jnp.arange(1, B + 1, dtype=jnp.int32)[:, None],  # A page a sequence.
        state_slots=jnp.arange(B, dtype=jnp.int32),
        max_query_len=T,
    )
    _, cache = model(batch, zeros(layout.paged(B + 1, T, B + 1, jnp.float32)))
    pages = [part for part, kind in _parts(cache, layout) if isinstance(kind, PagedKV)]
    shapes = [(kind.kv_heads, 2, kind.head_dim) for kind, _ in _leaves_of_pages(layout)]
    # Page 0 is nobody's.
    return [leaf.reshape(-1, (B + 1) * T, *shape)[:, T:] for leaf, shape in zip(pages, shapes, strict=True)]


def _largest(x: Float[Array, "S K 2 H"], turned: bool) -> Float[Array, "K 2 H"]:
    key, value = jnp.abs(x[:, :, 0]), jnp.abs(x[:, :, 1])
    if turned:
        first, second = jnp.split(key, 2, axis=-1)
        key = jnp.tile(jnp.hypot(first, second), 2)
    return jnp.max(jnp.stack([key, value], axis=2), axis=0)


def _scales(tops: np.ndarray, largest: float) -> np.ndarray:
    # A channel that was never used takes the scale of its head's largest, and that of a head never used 1.
    tops = np.where(tops > 0, tops, tops.max(axis=-1, keepdims=True))
    tops = np.where(tops > 0, tops, largest / MARGIN)
    return np.exp2(np.ceil(np.log2(MARGIN * tops / largest))).astype(np.float32)


def _check(shares: dict[tuple[int, int], float], dtype: str) -> None:
    """Refusal where too large a share of a layer's keys (0) or values (1) is clipped."""
    (layer, part), share = max(shares.items(), key=lambda item: item[1])
    if share > MOST_CLIPPED:
        raise Refusal(
            f"An {dtype} cache may clip {MOST_CLIPPED:.1%} of a layer's keys or values at the most; of held-out text "
            f"it clips {share:.2%} of the {('keys', 'values')[part]} of layer {layer}, whose largest differ too much "
            'from text to text. Take cache_dtype="bfloat16", which clips nothing.'
        )
