"""The stock side on the device: its compiled programs, and one batch running through them."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flexjax import causal_lm
from flexjax.engine.request import Request

_SMALLEST_PROMPT = 32  # tokens
_CACHE_QUANTUM = 64  # tokens
_KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)


class Programs:
    """The compiled steps, one a combination of padded sizes.

    Prompts are padded on the right: what a padding token writes at position p is written again by
    the token that really stands at p, before any query sees it.
    """

    def __init__(self, model: causal_lm.CausalLM, *, dtype: str, batch_size: int, max_prompt: int, max_output: int):
        self._graphdef, self.weights = nnx.split(model)
        self._model = model
        self._dtype = jnp.dtype(dtype)
        self.batch_sizes = _sizes(1, batch_size, factor=4)
        self.prompt_lengths = _sizes(min(_SMALLEST_PROMPT, max_prompt), max_prompt, factor=2)
        longest = -(-(max_prompt + max_output) // _CACHE_QUANTUM) * _CACHE_QUANTUM
        self.cache_lengths = list(range(_CACHE_QUANTUM, longest + 1, _CACHE_QUANTUM))
        self.prefill: dict[tuple[int, int], Any] = {}  # (B, T)
        self.extend: dict[tuple[int, int, int], Any] = {}  # (B, T, S)
        self.decode: dict[tuple[int, int], Any] = {}  # (B, S)

    def compile(self) -> None:
        """Compiles every program; XLA works outside the interpreter's lock, so two at a time."""
        with ThreadPoolExecutor(2) as pool:
            for b in self.batch_sizes:
                row = lambda dtype, b=b: jax.ShapeDtypeStruct((b,), dtype)
                sampling = (row(jnp.float32), _KEY)
                for t in self.prompt_lengths:
                    tokens = jax.ShapeDtypeStruct((b, t), jnp.int32)
                    arguments = (self.weights, tokens, row(jnp.int32), *sampling)
                    self.prefill[b, t] = pool.submit(_compile, jax.jit(self._prefill), *arguments)
                    for s in self.cache_lengths:
                        if s >= t:
                            grow = jax.jit(lambda cache, s=s: _grow(cache, s))
                            self.extend[b, t, s] = pool.submit(_compile, grow, self._cache(b, t))
                for s in self.cache_lengths:
                    arguments = (self.weights, self._cache(b, s), row(jnp.int32), row(jnp.int32), *sampling)
                    step = jax.jit(self._decode, donate_argnums=1)
                    self.decode[b, s] = pool.submit(_compile, step, *arguments)
        programs: dict[Any, Any]
        for programs in (self.prefill, self.extend, self.decode):
            programs.update({sizes: future.result() for sizes, future in programs.items()})

    def score(self, token_ids: Sequence[int]) -> np.ndarray:
        """Float32 logits `[T, V]`; compiles one program a doubling of the length."""
        padded = np.zeros(1 << (len(token_ids) - 1).bit_length(), np.int32)
        padded[: len(token_ids)] = token_ids
        return np.asarray(self._logits(self.weights, padded[None]))[0, : len(token_ids)]

    @functools.cached_property
    def _logits(self) -> Any:
        def logits(weights, tokens):
            model = nnx.merge(self._graphdef, weights)
            return model.logits(model.dense(tokens)[0])

        return jax.jit(logits)

    def cache_bytes(self, batch_size: int, length: int) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self._cache(batch_size, length)))

    def _cache(self, batch_size: int, length: int) -> Any:
        return jax.eval_shape(lambda: causal_lm.zeros(self._model.dense_cache_spec(batch_size, length, self._dtype)))

    def _prefill(self, weights, tokens, lengths, temperature, key):
        model = nnx.merge(self._graphdef, weights)
        b, t = tokens.shape
        cache = causal_lm.zeros(model.dense_cache_spec(b, t, self._dtype))
        positions = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t))
        hidden, cache = model.dense(tokens, positions, cache)
        last = hidden[jnp.arange(b), lengths - 1]
        return _choose(model.logits(last), temperature, key, lengths), cache

    def _decode(self, weights, cache, tokens, positions, temperature, key):
        model = nnx.merge(self._graphdef, weights)
        hidden, cache = model.dense(tokens[:, None], positions[:, None], cache)
        positions = positions + 1
        return _choose(model.logits(hidden[:, 0]), temperature, key, positions), positions, cache


class Batch:
    """One batch on the device: its cache, its newest tokens and where the next ones stand."""

    def __init__(self, programs: Programs, tokens: np.ndarray, lengths, temperature, seed: int, cache_length: int):
        self.size, prompt_length = tokens.shape
        self.cache_length = cache_length
        self._weights = programs.weights
        self._decode = programs.decode[self.size, cache_length]
        self._sampling = (temperature, np.array([0, seed], np.uint32))
        prefill, extend = programs.prefill[tokens.shape], programs.extend[self.size, prompt_length, cache_length]
        self._tokens, cache = prefill(self._weights, tokens, lengths, *self._sampling)
        self._cache = extend(cache)
        self._positions = lengths

    @classmethod
    def begin(cls, programs: Programs, requests: Sequence[Request]) -> Self:
        """A batch whose prompts are on their way through the model; rows past the requests are padding."""
        size = _at_least(programs.batch_sizes, len(requests))
        longest_in = max(len(r.prompt_token_ids) for r in requests)
        longest = longest_in + max(r.params.max_tokens or 0 for r in requests)
        prompt_length = _at_least(programs.prompt_lengths, longest_in)
        tokens = np.zeros((size, prompt_length), np.int32)
        lengths = np.ones(size, np.int32)
        temperature = np.zeros(size, np.float32)
        for i, request in enumerate(requests):
            lengths[i] = len(request.prompt_token_ids)
            tokens[i, : lengths[i]] = request.prompt_token_ids
            temperature[i] = request.params.temperature
        cache_length = _at_least(programs.cache_lengths, max(longest, prompt_length))
        return cls(programs, tokens, lengths, temperature, requests[0].params.seed or 0, cache_length)

    def read(self) -> np.ndarray:
        """The newest token of each row, waited for."""
        return np.asarray(self._tokens)

    def advance(self) -> None:
        """One more step for every row."""
        self._tokens, self._positions, self._cache = self._decode(
            self._weights, self._cache, self._tokens, self._positions, *self._sampling
        )


def _compile(program: Any, *arguments: Any) -> Any:
    return program.lower(*arguments).compile()


def _grow(cache: Any, length: int) -> Any:
    pad = lambda leaf: jnp.pad(leaf, [(0, 0), (0, length - leaf.shape[1]), *[(0, 0)] * (leaf.ndim - 2)])
    return jax.tree.map(pad, cache)


def _choose(logits, temperature, key, positions):
    """Greedy at temperature 0, else drawn; random numbers are made only where a row wants them."""

    def draw():
        step = jax.random.fold_in(jax.random.wrap_key_data(key), jnp.max(positions))
        scaled = logits / jnp.maximum(temperature, 1e-6)[:, None]
        return jnp.where(temperature > 0, jax.random.categorical(step, scaled), greedy)

    greedy = jnp.argmax(logits, axis=-1)
    return jax.lax.cond(jnp.any(temperature > 0), draw, lambda: greedy).astype(jnp.int32)


def _sizes(first: int, last: int, factor: int) -> list[int]:
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(min(sizes[-1] * factor, last))
    return sizes


def _at_least(sizes: Sequence[int], wanted: int) -> int:
    return next(size for size in sizes if size >= wanted)
