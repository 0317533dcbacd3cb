"""Times small programs against each other, in alternating rounds."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax


class Loop:
    """A compiled step whose result is its next argument, so that no call overlaps or outruns another.

    The state is donated: a step that keeps its shape needs no memory of its own. Other arguments stay where they are.
    """

    def __init__(self, step: Callable[..., Any], state: Any, *constants: Any):
        self._step = jax.jit(step, donate_argnums=0, keep_unused=True).lower(state, *constants).compile()
        self._state, self._constants = self._step(state, *constants), constants

    def __call__(self, calls: int) -> float:
        """Seconds that so many calls take, enqueued at once and waited for together."""
        jax.block_until_ready(self._state)
        began = time.perf_counter()
        for _ in range(calls):
            self._state = self._step(self._state, *self._constants)
        jax.block_until_ready(self._state)
        return time.perf_counter() - began


def waiting(loop: Loop) -> Callable[[int], float]:
    """The loop with each call waited for before the next."""
    return lambda calls: sum(loop(1) for _ in range(calls))


@dataclasses.dataclass(frozen=True)
class Probe:
    """One thing to time. `work` is what a call does, in operations or bytes; 0 where only the time counts."""

    name: str  # "bfloat16 2048"
    kind: str  # What the work is compared within: a dtype, "read", "all-reduce", …
    work: float
    run: Callable[[int], float]  # Calls → seconds.

    def best(self, calls: int) -> float:
        """Work a second of the quickest of so many calls, each waited for, after one that brings back to the caches
        what fits there: for limits between other things that are timed."""
        self.run(1)
        return self.work / min(self.run(1) for _ in range(calls))


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a probe took: seconds a call, over the rounds."""

    probe: Probe
    median: float
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Work a second, by the median."""
        return self.probe.work / self.median


def measure(probes: Sequence[Probe], rounds: int, round_s: float) -> Iterator[Reading]:
    """Each probe for about `round_s` in each round, one after the other: what disturbs the machine disturbs all."""
    calls = [_calls_in(probe, round_s) for probe in probes]
    times = [[probe.run(n) / n for probe, n in zip(probes, calls, strict=True)] for _ in range(rounds)]
    for probe, seconds in zip(probes, zip(*times, strict=True), strict=True):
        yield Reading(probe, statistics.median(seconds), min(seconds), max(seconds))


def _calls_in(probe: Probe, seconds: float) -> int:
    """How many calls fill the time; also warms up."""
    calls = 1
    while (took := probe.run(calls)) < seconds / 4 and calls < 100_000:
        calls *= 4
    return max(1, round(calls * seconds / took))
