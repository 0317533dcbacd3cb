"""The scales of an int8 or float8 cache, and what a cache is really held in."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flexjax.hardware.sharding import SERVING, constrain
from flexjax.kernels.ragged_paged_attention import LARGEST, Int4Pages, ScaledPages
from flexjax.model import CacheLeaf, CausalLM, RaggedBatch, zeros
from flexjax.refusal import Refusal

MARGIN = 1.25  # At least, from the largest number that was seen in a channel to the first that is clipped.
MOST_CLIPPED = 1e-3  # A share of any layer's keys, or of its values.


def cache_scales(model: CausalLM, dtype: str, seen: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """float32 `[L, K, 2, H]`: the power of two by which each channel of each layer's and kv head's keys (index 0) and
    values (1) is divided.

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

    @jax.jit
    def observe(state, tokens, limits):
        model = nnx.merge(graph, state)
        found = [x for leaf in _keys_and_values(model, tokens, dtype) for x in leaf]
        turned = model.rotary or (False,) * len(found)
        beyond = [jnp.sum(jnp.abs(x) > limit[None], axis=(0, 1, 3)) for x, limit in zip(found, limits, strict=True)]
        tops = [_largest(x, turns) for x, turns in zip(found, turned, strict=True)]
        whole = lambda x: constrain(x, (None,) * x.ndim, SERVING)
        return whole(jnp.stack(tops)), whole(jnp.stack(beyond))

    shape = _layers(model, dtype)
    tops = np.asarray(observe(state, jnp.asarray(seen, jnp.int32), jnp.full(shape, jnp.inf))[0], np.float64)
    # A channel that was never used takes the scale of its head's largest, and that of a head never used 1.
    tops = np.where(tops > 0, tops, tops.max(axis=-1, keepdims=True))
    tops = np.where(tops > 0, tops, largest / MARGIN)
    scales = np.exp2(np.ceil(np.log2(MARGIN * tops / largest))).astype(np.float32)
    clipped = observe(state, jnp.asarray(held_out, jnp.int32), jnp.asarray(scales * np.float32(largest)))[1]
    _check(np.asarray(clipped), held_out.size * shape[1] * shape[3], dtype)
    return scales


def cache_dtypes(cache: Any) -> set[str]:
    """The dtypes of a model's cache, read from its arrays. Scales and counts are not counted."""
    parts = jax.tree.leaves(cache, is_leaf=lambda x: isinstance(x, Int4Pages | ScaledPages))
    values = [part.values if isinstance(part, ScaledPages) else part for part in parts]
    return {"int4" if isinstance(part, Int4Pages) else part.dtype.name for part in values}


def _scaled_leaves(spec: Any) -> list[ScaledPages | None]:
    """Each leaf of a cache, or part of one; None for a leaf without scales."""
    parts = jax.tree.leaves(spec, is_leaf=lambda x: isinstance(x, ScaledPages | CacheLeaf))
    return [part if isinstance(part, ScaledPages) else None for part in parts]


def _layers(model: CausalLM, dtype: str) -> tuple[int, int, int, int]:
    """L, K, 2, H of the layers whose pages have scales."""
    spec: Any = [leaf for leaf in _scaled_leaves(model.cache_spec(1, 1, 1, dtype)) if leaf is not None]
    shapes = [leaf.scales.shape for leaf in spec]
    K, two, H = shapes[0][-3:]
    return sum(shape[0] if len(shape) == 4 else 1 for shape in shapes), K, two, H


def _keys_and_values(model: CausalLM, tokens: Int[Array, "B T"], dtype: str) -> list[Float[Array, "L B*T K 2 H"]]:
    """Those of every cache leaf whose pages have scales in `dtype`, of one layer or of all, in float32."""
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
    _, cache = model(batch, zeros(model.cache_spec(B + 1, T, B + 1, jnp.float32)))
    scaled = _scaled_leaves(model.cache_spec(1, 1, 1, dtype))
    pages = [leaf for leaf, of in zip(jax.tree.leaves(cache), scaled, strict=True) if of is not None]
    K, two, H = _layers(model, dtype)[1:]
    return [leaf.reshape(-1, (B + 1) * T, K, two, H)[:, T:] for leaf in pages]  # Page 0 is nobody's.


def _largest(x: Float[Array, "S K 2 H"], turned: bool) -> Float[Array, "K 2 H"]:
    key, value = jnp.abs(x[:, :, 0]), jnp.abs(x[:, :, 1])
    if turned:
        first, second = jnp.split(key, 2, axis=-1)
        key = jnp.tile(jnp.hypot(first, second), 2)
    return jnp.max(jnp.stack([key, value], axis=2), axis=0)


def _check(clipped: np.ndarray, numbers: int, dtype: str) -> None:
    """Refusal where too many of so many keys, or values, of a layer are clipped; `clipped` is [L, 2]."""
    layer, part = np.unravel_index(np.argmax(clipped), clipped.shape)
    share = clipped[layer, part] / numbers
    if share > MOST_CLIPPED:
        raise Refusal(
            f"An {dtype} cache may clip {MOST_CLIPPED:.1%} of a layer's keys or values at the most; of held-out text "
            f"it clips {share:.2%} of the {('keys', 'values')[part]} of layer {layer}, whose largest differ too much "
            'from text to text. Take cache_dtype="bfloat16", which clips nothing.'
        )
