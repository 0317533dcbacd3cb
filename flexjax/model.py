"""What a model gives the engine and the trainer.

Axes, here and everywhere: B sequences, T query tokens, S key/value tokens, N query heads,
K key/value heads, G = N // K, H head dim, D model width, F feed-forward width, V vocabulary,
L layers, P pages of one sequence.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flexjax.refusal import Refusal

Axes = tuple[str | None, ...]  # One logical name a dimension.
# Puts one parameter, given with its logical axes, on the device or mesh.
Place = Callable[[np.ndarray, Axes], jax.Array]
# What stands in the model for a parameter that was put there: itself, or a module of fewer bits.
Convert = Callable[[nnx.Param], Any]
Cache = Any  # The pytree of arrays that `flexjax.nn.Layout` lays out.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RaggedBatch:
    """One step's tokens: sequences with different numbers of new tokens, laid end to end.

    The same form serves prefill chunks, decode tokens, draft verification and mixtures of them.

    Invariants:
      - `query_starts` starts at 0 and never falls; sequence b owns the rows
        `query_starts[b]:query_starts[b + 1]`; rows past `query_starts[B]` are padding.
      - Live sequences come first; a padding sequence has no rows and `kv_lengths` 0.
      - `kv_lengths[b]` counts the sequence's tokens *after* this step, so its last row sits at
        position `kv_lengths[b] - 1`.
      - Position p of sequence b lies in page `page_table[b, p // page_size]`, row
        `p % page_size`. Page 0 belongs to nobody: unused entries of the table point at it. Where layers have windows
        of several sizes, those of each have a table of their own: `page_table[i, b]` for the i-th of `Layout.windows`.
      - A window's entries may repeat: what lies behind it has been overwritten.
      - `max_query_len` is static and bounds the rows of any sequence; 1 means pure decoding.
    """

    tokens: Int[Array, "T"]
    positions: Int[Array, "T"]
    query_starts: Int[Array, "B+1"]
    kv_lengths: Int[Array, "B"]
    page_table: Int[Array, "*W B P"]
    state_slots: Int[Array, "B"]  # One slot a sequence, for fixed-size recurrent state.
    max_query_len: int = dataclasses.field(metadata=dict(static=True))


@dataclasses.dataclass(frozen=True)
class CacheLeaf:
    """One array of the cache: its shape, dtype and logical axis names, one name a dimension."""

    shape: tuple[int, ...]
    dtype: Any
    axes: Axes
    copies: int = 1  # The most devices that can share one of its kv_heads: G.
    paired: bool = False  # Each of its kv_heads is two rows, a key and a value.

    @property
    def nbytes(self) -> int:
        size = jnp.dtype(self.dtype).itemsize
        for n in self.shape:
            size *= n
        return size


@dataclasses.dataclass(frozen=True)
class PagedKV:
    """Of an attention layer: keys and values of every token, or of the last `window` ones, in pages."""

    kv_heads: int
    head_dim: int
    window: int | None = None  # tokens
    copies: int = 1  # The most devices that can share a kv head: its query heads.


@dataclasses.dataclass(frozen=True)
class State:
    """Of a recurrent layer: one array of fixed size a sequence, in a slot.

    It is of the rows before the batch's, and stale where a sequence's first row has position 0.
    """

    shape: tuple[int, ...]
    dtype: Any  # Its own: what a step adds to may need more bits than the cache has.
    axes: Axes  # One logical name a dimension.


Kept = tuple[PagedKV | State, ...]  # What one layer keeps of earlier tokens.


class CausalLM(nnx.Module):
    """Predicts the next token.

    `config` is a frozen dataclass with at least `vocab_size: int`, `max_position: int` (longest
    context in tokens), `num_layers: int` and `architecture: str` (the published class name).

    A family gives the first four methods. The others are forms of the same model that serve or train it better; by
    default a model has one form.
    """

    config: Any
    rows_apart: bool = False  # A row's result does not depend on how many rows there are.
    loops: bool = False  # Its layers run in a loop, over stacked weights.

    def __call__(self, batch: RaggedBatch, cache: Cache) -> tuple[Float[Array, "T D"], Cache]:
        """Hidden states of every row, and the cache with this step's tokens written."""
        raise NotImplementedError

    def dense(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Hidden states of a rectangular batch, for training and for plain baselines.

        Without a cache, attention is causal over the T tokens. With one, each token is written at its own position and
        sees all positions up to it.
        """
        raise NotImplementedError

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Float32 logits, after the final soft-cap where the architecture has one."""
        raise NotImplementedError

    def kept(self) -> Sequence[Kept]:
        """What each layer keeps of earlier tokens, first to last. `flexjax.nn.Layout` says how a cache holds it, here
        (paged) and in `dense` (rectangular)."""
        raise NotImplementedError

    @property
    def rotary(self) -> Sequence[bool]:
        """Of each layer that keeps keys: whether it turns channel i of a key with channel i + H / 2 by an angle that
        grows with its position, so that either can become as large as both together."""
        return ()

    def stacked(self, *, release: bool = False, stages: int = 1, microbatches: int = 1) -> "CausalLM":
        """The same model with repeating layers stacked and run in a loop; its cache may then be one leaf with a leading
        "layers" axis. `release` frees the arrays of this form as they are stacked: never more than one stack is held
        twice.

        To train on a mesh with an axis `stage`, give its size, and into how many microbatches a batch is cut: a
        multiple of `stages`, of which every part must divide by data × fsdp (flexjax.hardware.pipeline).
        """
        if stages > 1:
            raise Refusal(self._cannot("run in stages", "stacked", "mesh.stage=1"))
        return self

    def unstacked(self) -> "CausalLM":
        """The same model with one array a layer."""
        return self

    def recomputing(self) -> "CausalLM":
        """The same model, over the same parameters, which in training keeps of each layer its input alone and computes
        the rest again in the backward pass."""
        raise Refusal(self._cannot("compute layers again", "recomputing", "loop.recompute_layers=False"))

    def packed(self, *, activation_dtype: str | None = None, release: bool = False) -> "CausalLM":
        """The same model with its projections copied into the form that the CPU's kernels stream; with
        `activation_dtype` rows are rounded for the products with quantised ones. `release` frees the arrays of this
        form as they are packed: never more than one layer or table is held twice."""
        return self

    def _cannot(self, what: str, method: str, way_out: str) -> str:
        return f"{self.config.architecture} cannot {what}: its family does not offer `{method}`. Set {way_out}."


def parameters(model: CausalLM) -> list[tuple[str, Axes, Any]]:
    """(name, logical axes, value) of every parameter, in the order of `jax.tree.leaves(nnx.state(model))`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(nnx.state(model), is_leaf=lambda x: isinstance(x, nnx.Variable))
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), p.get_metadata("axes"), p.get_value())
        for path, p in flat
    ]


def set_parameter(model: Any, path: Sequence[Any], value: Any) -> None:
    """Puts a parameter, or a module that stands for one, where `path` of the model's flat state says."""
    *holders, name = path
    for part in holders:
        model = model[part] if isinstance(part, int) else getattr(model, part)
    setattr(model, str(name), value)


def zeros(spec: Any) -> Cache:
    """An empty cache: the pytree of `CacheLeaf` turned into zero arrays."""
    is_leaf = lambda x: isinstance(x, CacheLeaf)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), spec, is_leaf=is_leaf)
