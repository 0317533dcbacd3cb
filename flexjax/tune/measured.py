"""A candidate's cost by running it: beside the defaults, in alternating rounds of one process."""

import time
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from flexjax.engine.device import StepProgram, empty_memory
from flexjax.lab import Candidate, Cost, alternated
from flexjax.model import CausalLM, zeros
from flexjax.tune import step


class MeasuredStep:
    """Times the engine's decoding step on the device that is here."""

    kind: Literal["measured"] = "measured"
    unit = "ms a step"

    def __init__(self, model: CausalLM, program: StepProgram, *, context: int, rounds: int, dispatches: int):
        self._program, self._rounds, self._dispatches = program, rounds, dispatches
        self._weights = jax.tree.leaves(nnx.state(model))
        self._packed = jax.numpy.asarray(step.full_batch(program, context))
        self._default = self._compile({})
        self._expected = self._results(self._default)
        self._state = self._fresh()

    def __call__(self, candidate: Candidate, effort: int = 1) -> Cost:
        compiled = self._compile(candidate)
        same = _same(self._results(compiled), self._expected)
        sides = (lambda: self._dispatch(self._default), lambda: self._dispatch(compiled))
        return alternated(sides, effort * self._rounds, self._dispatches, same)

    def _compile(self, candidate: Candidate) -> jax.stages.Compiled:
        return step.compiled_with(
            self._program,
            candidate,
            jax.default_backend(),
            lambda lowered, options: lowered.compile(compiler_options=options),
        )

    def _fresh(self) -> tuple[Any, Any]:
        slots = self._program.config.max_num_seqs + 1
        return zeros(self._program.cache_spec), empty_memory(slots, self._program.vocab_size)

    def _results(self, compiled: jax.stages.Compiled) -> list[np.ndarray]:
        """Everything that one dispatch gives from an empty cache: tokens, their probabilities, keys and values."""
        return [np.asarray(leaf) for leaf in jax.tree.leaves(compiled(self._weights, *self._fresh(), self._packed))]

    def _dispatch(self, compiled: jax.stages.Compiled) -> float:
        """Milliseconds a step."""
        began = time.perf_counter()
        cache, memory, sampled = compiled(self._weights, *self._state, self._packed)
        sampled.tokens.block_until_ready()
        seconds = time.perf_counter() - began
        self._state = cache, memory
        return 1e3 * seconds / self._program.config.decode_steps


def _same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))
