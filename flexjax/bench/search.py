"""The largest rate at which a side keeps its latency limits."""

import dataclasses
import math
from collections.abc import Callable

from flexjax.refusal import Refusal

_STEP = 1.25  # From the first rate to the second; its square to the third, until one is held and one is missed.


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How far the search goes."""

    precision: float = 0.12  # Ends when the rate missed is at most so much above the rate held.
    probes: int = 8  # Runs at most, for each side.
    queries: int = 500  # Of each probe. A rate that a few queries more would decide is probed again with twice as many.
    min_duration_s: float = 10.0  # Of each probe.

    def __post_init__(self):
        if self.precision <= 0 or self.probes < 1 or self.queries < 1 or self.min_duration_s < 0:
            raise Refusal(f"A search needs a positive precision and at least one probe and query; got {self}.")


@dataclasses.dataclass(frozen=True)
class Bracket:
    """The largest rate held (0 without one) and the smallest missed (infinite without one), with the probes made."""

    held: float
    missed: float
    probes: tuple[tuple[float, bool], ...]


def largest_rate(holds: Callable[[float], bool], start: float, config: SearchConfig) -> Bracket:
    """Brackets the largest rate for which `holds` is true: from `start` in steps that grow, then by geometric means.

    A rate above one that was missed counts as missed: the side is taken to do worse as the rate grows.
    """
    held, missed = 0.0, math.inf
    probes: list[tuple[float, bool]] = []
    rate, step = start, _STEP
    while len(probes) < config.probes:
        kept = holds(rate)
        probes.append((rate, kept))
        held, missed = (rate, missed) if kept else (held, rate)
        if missed <= held * (1 + config.precision):
            break
        rate = held * step if missed == math.inf else missed / step if not held else math.sqrt(held * missed)
        step *= step
    return Bracket(held, missed, tuple(probes))
