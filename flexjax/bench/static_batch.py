"""The stock side on the device: its compiled programs, and one batch running through them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flexjax import kernels
from flexjax.engine import Request
from flexjax.model import CausalLM, zeros
from flexjax.nn import layout_of

_SMALLEST_PROMPT = 32  # tokens
_CACHE_QUANTUM = 64  # tokens
_KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)


class Programs:
    """The compiled steps, one a combination of padded sizes.

    Prompts are padded on the right: what a padding token writes at position p is written again by
    the token that really stands at p, before any query sees it.
    """

    def __init__(self, model: CausalLM, *, dtype: str, batch_size: int, max_prompt: int, max_output: int):
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
        compile_here = kernels.for_threads(_compile)
        with ThreadPoolExecutor(2) as pool:
            for b in self.batch_sizes:
                row = lambda dtype, b=b: jax.ShapeDtypeStruct((b,), dtype)
                sampling = Sampling(row(jnp.float32), _KEY, row(jnp.int32), row(jnp.bool_))
                for t in self.prompt_lengths:
                    tokens = jax.ShapeDtypeStruct((b, t), jnp.int32)
                    arguments = (self.weights, tokens, row(jnp.int32), sampling)
                    self.prefill[b, t] = pool.submit(compile_here, jax.jit(self._prefill), *arguments)
                    for s in self.cache_lengths:
                        if s >= t:
                            grow = jax.jit(lambda cache, s=s: _grow(cache, s))
                            self.extend[b, t, s] = pool.submit(compile_here, grow, self._cache(b, t))
                for s in self.cache_lengths:
                    arguments = (self.weights, self._cache(b, s), row(jnp.int32), row(jnp.int32), sampling)
                    step = jax.jit(self._decode, donate_argnums=1)
                    self.decode[b, s] = pool.submit(compile_here, step, *arguments)
        programs: dict[Any, Any]
        for programs in (self.prefill, self.extend, self.decode):
            programs.update({sizes: future.result() for sizes, future in programs.items()})

    def cache_bytes(self, batch_size: int, length: int) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self._cache(batch_size, length)))

    def _cache(self, batch_size: int, length: int) -> Any:
        return jax.eval_shape(lambda: zeros(layout_of(self._model).dense(batch_size, length, self._dtype)))

    def _prefill(self, weights, tokens, lengths, sampling: "Sampling"):
        model = nnx.merge(self._graphdef, weights)
        b, t = tokens.shape
        cache = zeros(layout_of(model).dense(b, t, self._dtype))
        positions = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t))
        hidden, cache = model.dense(tokens, positions, cache)
        last = hidden[jnp.arange(b), lengths - 1]
        return _choose(model.logits(last), sampling, lengths), cache

    def _decode(self, weights, cache, tokens, positions, sampling: "Sampling"):
        model = nnx.merge(self._graphdef, weights)
        hidden, cache = model.dense(tokens[:, None], positions[:, None], cache)
        positions = positions + 1
        return _choose(model.logits(hidden[:, 0]), sampling, positions), positions, cache


class Sampling(NamedTuple):
    """How the B rows of a batch are continued."""

    temperature: Any  # [B] float32; 0 is greedy.
    key: Any  # [2] uint32
    forced: Any  # [B] int32: the token to choose; -1 leaves the choice to the model.
    wants_logprobs: Any  # [B] bool


class Batch:
    """One batch on the device: its cache, its newest tokens and where the next ones stand."""

    def __init__(
        self, programs: Programs, tokens: np.ndarray, lengths, sampling: Sampling, forced: np.ndarray, cache_length: int
    ):
        """`forced` is `[B, outputs]`, -1 where the model chooses; so it does after the last column."""
        self.size, prompt_length = tokens.shape
        self.cache_length = cache_length
        self._weights = programs.weights
        self._decode = programs.decode[self.size, cache_length]
        self._sampling, self._forced, self._made = sampling, forced, 0
        prefill, extend = programs.prefill[tokens.shape], programs.extend[self.size, prompt_length, cache_length]
        (self._tokens, self._logprobs), cache = prefill(self._weights, tokens, lengths, self._next())
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
        temperature, wants_logprobs = np.zeros(size, np.float32), np.zeros(size, bool)
        forced = np.full((size, max(len(r.forced) for r in requests)), -1, np.int32)
        for i, request in enumerate(requests):
            lengths[i] = len(request.prompt_token_ids)
            tokens[i, : lengths[i]] = request.prompt_token_ids
            temperature[i] = request.params.temperature
            wants_logprobs[i] = request.params.logprobs is not None
            forced[i, : len(request.forced)] = request.forced
        cache_length = _at_least(programs.cache_lengths, max(longest, prompt_length))
        key = np.array([0, requests[0].params.seed or 0], np.uint32)
        sampling = Sampling(temperature, key, np.full(size, -1, np.int32), wants_logprobs)
        return cls(programs, tokens, lengths, sampling, forced, cache_length)

    def read(self) -> np.ndarray:
        """The newest token of each row, waited for."""
        return np.asarray(self._tokens)

    def logprobs(self) -> np.ndarray:
        """Of the newest token of each row; 0 in a batch of which no row wants them."""
        return np.asarray(self._logprobs)

    def advance(self) -> None:
        """One more step for every row."""
        (self._tokens, self._logprobs), self._positions, self._cache = self._decode(
            self._weights, self._cache, self._tokens, self._positions, self._next()
        )

    def _next(self) -> Sampling:
        """How the next token of each row is chosen."""
        self._made += 1
        if self._made > self._forced.shape[1]:
            return self._sampling
        return self._sampling._replace(forced=self._forced[:, self._made - 1])


def _compile(program: Any, *arguments: Any) -> Any:
    return program.lower(*arguments).compile()


def _grow(cache: Any, length: int) -> Any:
    pad = lambda leaf: jnp.pad(leaf, [(0, 0), (0, length - leaf.shape[1]), *[(0, 0)] * (leaf.ndim - 2)])
    return jax.tree.map(pad, cache)


def _choose(logits, sampling: Sampling, positions):
    """Tokens and their log-probabilities: greedy at temperature 0, else drawn, or forced. Random numbers and
    log-probabilities are made only where a row wants them."""
    temperature = sampling.temperature

    def draw():
        step = jax.random.fold_in(jax.random.wrap_key_data(sampling.key), jnp.max(positions))
        scaled = logits / jnp.maximum(temperature, 1e-6)[:, None]
        return jnp.where(temperature > 0, jax.random.categorical(step, scaled), greedy)

    def of_chosen():
        return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens[:, None], axis=-1)[:, 0]

    greedy = jnp.argmax(logits, axis=-1)
    chosen = jax.lax.cond(jnp.any(temperature > 0), draw, lambda: greedy).astype(jnp.int32)
    tokens = jnp.where(sampling.forced >= 0, sampling.forced, chosen)
    nothing = lambda: jnp.zeros(tokens.shape, jnp.float32)
    return tokens, jax.lax.cond(jnp.any(sampling.wants_logprobs), of_chosen, nothing)


def _sizes(first: int, last: int, factor: int) -> list[int]:
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(min(sizes[-1] * factor, last))
    return sizes


def _at_least(sizes: Sequence[int], wanted: int) -> int:
    return next(size for size in sizes if size >= wanted)
