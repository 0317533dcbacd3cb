"""Logits of every position of a given text, through the same paged forward as generation."""

import collections
import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flexjax.engine.device.placement import Placement, shardings_of
from flexjax.model import Cache, CausalLM, RaggedBatch

_KEPT = 2  # Scorers, each with a cache of one context.


@dataclasses.dataclass(frozen=True)
class Scoring:
    """A text to score between two steps; `result` is where its logits are awaited."""

    tokens: tuple[int, ...]
    rows_per_step: int
    result: Future[np.ndarray] | None


class Scorer:
    """Scores one text at a time in chunks of `rows_per_step` (1 is token-by-token decoding).

    It has a small cache of its own, one context long, and compiles at the first call.
    """

    def __init__(
        self,
        model: CausalLM,
        *,
        max_model_len: int,
        page_size: int,
        cache_dtype,
        rows_per_step: int,
        placement: Placement,
        cache_scales: Sequence[np.ndarray] | None = None,
    ):
        """`cache_scales` are those of an int8 or float8 cache (`flexjax.engine.device.cache_scales`)."""
        self.rows_per_step = rows_per_step
        self._placement = placement
        self._graphdef, self._state = nnx.split(model)
        num_pages = -(-max_model_len // page_size)
        self._page_table = np.arange(1, num_pages + 1, dtype=np.int32)[None]
        spec = placement.cache_spec(model, num_pages + 1, page_size, 1, cache_dtype)
        abstract = placement.abstract_cache(spec)
        self._empty_cache = lambda: placement.empty_cache(spec, cache_scales)
        self._cache: Cache | None = None  # Given to the step while that runs.
        self._step = placement.jit(
            _forward, (placement.whole, shardings_of(abstract)), static_argnums=0, donate_argnums=2
        )

    def __call__(self, tokens) -> np.ndarray:
        """Float32 logits [T, V]; row t predicts token t + 1. What an earlier text left in the cache is never read."""
        cache, self._cache = self._empty_cache() if self._cache is None else self._cache, None
        logits = []
        for start in range(0, len(tokens), self.rows_per_step):
            chunk = np.asarray(tokens[start : start + self.rows_per_step], np.int32)
            padded = np.zeros(self.rows_per_step, np.int32)
            padded[: len(chunk)] = chunk
            with self._placement.in_use():
                out, cache = self._step(
                    self._graphdef,
                    self._state,
                    cache,
                    self._page_table,
                    padded,
                    np.int32(start),
                    np.int32(len(chunk)),
                )
            logits.append(np.asarray(out)[: len(chunk)])
        self._cache = cache
        return np.concatenate(logits)

    def free(self) -> None:
        """Gives the cache's memory back at once; a later text makes a new one."""
        jax.tree.map(lambda leaf: leaf.delete(), self._cache)
        self._cache = None


class Scorers:
    """Scorers by their rows a step, for any thread: one text at a time, because a step takes its cache over. The
    last few are kept."""

    def __init__(self, make: Callable[[int], Scorer]):
        self._make = make
        self._kept: collections.OrderedDict[int, Scorer] = collections.OrderedDict()
        self._scoring = threading.Lock()

    def __call__(self, tokens: tuple[int, ...], rows_per_step: int) -> np.ndarray:
        with self._scoring:
            if rows_per_step not in self._kept:
                while len(self._kept) >= _KEPT:
                    self._kept.popitem(last=False)[1].free()
                self._kept[rows_per_step] = self._make(rows_per_step)
            self._kept.move_to_end(rows_per_step)
            return self._kept[rows_per_step](tokens)


def _forward(graphdef, state, cache, page_table, tokens, start, length) -> tuple[Float[Array, "T V"], Cache]:
    model = nnx.merge(graphdef, state)
    rows = tokens.shape[0]
    batch = RaggedBatch(
        tokens=tokens,
        positions=start + jnp.arange(rows, dtype=jnp.int32),
        query_starts=jnp.stack([jnp.zeros_like(length), length]),
        kv_lengths=(start + length)[None],
        page_table=page_table,
        state_slots=jnp.zeros(1, jnp.int32),
        max_query_len=rows,
    )
    hidden, cache = model(batch, cache)
    return model.logits(hidden), cache
