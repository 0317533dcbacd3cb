"""A toy family whose recurrent layers count rows, beside attention layers with windows and head sizes of their own.

The next token is the number of rows that a sequence's first counter has seen, modulo the vocabulary: after a prompt of
n tokens come n, n + 1, … A row that is counted twice, or a state that another sequence has written to, shows in the
tokens. Attention adds nothing to what is predicted, and `forget` says where its keys must lie.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flexjax.model import Cache, CausalLM, Kept, PagedKV, RaggedBatch, State
from flexjax.nn import layout_of, over_pages


@dataclasses.dataclass(frozen=True)
class Attends:
    kv_heads: int = 1
    head_dim: int = 8
    window: int | None = None


@dataclasses.dataclass(frozen=True)
class Counts:
    width: int = 1


@dataclasses.dataclass(frozen=True)
class CountingConfig:
    layers: tuple[Attends | Counts, ...]
    vocab_size: int = 64
    max_position: int = 256
    architecture: str = "CountingForCausalLM"

    @property
    def num_layers(self) -> int:
        return len(self.layers)


class Counting(CausalLM):
    """Hidden states are `[T, 2]`: what the first counter stands at, and what the attention layers saw.

    Each attention layer has keys of zeros, so that it sees the mean of its values, and these are the row's position
    and 1: the mean over the visible positions, which is known.
    """

    def __init__(self, config: CountingConfig, dtype: Any = jnp.float32):
        self.config = config
        self.weight = nnx.Param(jnp.ones(1, dtype), axes=(None,))  # An engine has weights.

    def kept(self) -> Sequence[Kept]:
        return [self._kept(layer) for layer in self.config.layers]

    def _kept(self, layer: Attends | Counts) -> Kept:
        if isinstance(layer, Attends):
            return (PagedKV(layer.kv_heads, layer.head_dim, layer.window),)
        # A count, and beside it the last token that was seen: two states of one layer.
        return State((layer.width,), jnp.float32, (None,)), State((), jnp.int32, ())

    def __call__(self, batch: RaggedBatch, cache: Cache) -> tuple[jax.Array, Cache]:
        T = batch.tokens.shape[0]
        owner = jnp.searchsorted(batch.query_starts, jnp.arange(T), side="right").astype(jnp.int32) - 1
        owner = jnp.minimum(owner, batch.kv_lengths.shape[0] - 1)
        counted, seen, new = None, jnp.zeros(T), []
        for layer, leaves in zip(self.config.layers, cache, strict=True):
            if isinstance(layer, Attends):
                mean, leaves = self._attend(layer, leaves[0], batch)
                seen = seen + mean
            else:
                rows, leaves = _count(leaves, batch, owner)
                counted = rows if counted is None else counted
            new.append(leaves)
        counted = jnp.zeros(T) if counted is None else counted
        return jnp.stack([counted, seen], axis=1) * self.weight[...].astype(jnp.float32)[:, None], new

    def _attend(self, layer: Attends, pages: Any, batch: RaggedBatch):
        T, shape = batch.tokens.shape[0], (layer.kv_heads, layer.head_dim)
        dtype = jnp.float32
        k = jnp.zeros((T, *shape), dtype)
        v = jnp.broadcast_to((batch.positions + 1).astype(dtype)[:, None, None], (T, *shape))
        table = layout_of(self).windows.index(layer.window)
        mixed, pages = over_pages(k, k, v, pages, None, batch, table, scale=1.0, window=layer.window, softcap=None)
        return mixed[:, 0, 0], (pages,)

    def logits(self, hidden: jax.Array) -> jax.Array:
        wanted = jnp.mod(jnp.round(hidden[..., :1]), self.config.vocab_size)
        every = jnp.arange(self.config.vocab_size, dtype=jnp.float32)
        shape = (*hidden.shape[:-1], len(every))
        return -jnp.abs(jnp.broadcast_to(every, shape) - jnp.broadcast_to(wanted, shape))


def _count(leaves, batch: RaggedBatch, owner):
    counts, last = leaves
    starts, lengths = batch.query_starts[:-1], batch.query_starts[1:] - batch.query_starts[:-1]
    begins = batch.positions[jnp.minimum(starts, batch.positions.shape[0] - 1)] == 0
    before = jnp.where(begins[:, None], 0.0, counts[batch.state_slots])
    within = jnp.arange(batch.tokens.shape[0]) - starts[owner] + 1
    rows = before[owner, 0] + within.astype(jnp.float32)
    live = lengths > 0
    slots = jnp.where(live, batch.state_slots, counts.shape[0])  # Out of bounds: dropped.
    after = before + jnp.broadcast_to(lengths[:, None].astype(jnp.float32), before.shape)
    counts = counts.at[slots].set(after, mode="drop")
    ends = batch.tokens[jnp.maximum(batch.query_starts[1:] - 1, 0)]
    return rows, (counts, last.at[slots].set(ends, mode="drop"))
