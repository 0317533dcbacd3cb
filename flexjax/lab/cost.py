"""What a candidate costs: the contract between the search and those who measure or compile."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import numpy as np

Setting = bool | int | float | str
# Flag name without dashes, or kernel block size "<op>.<module>.<CONSTANT>" → value. Empty is everything by default.
Candidate = Mapping[str, Setting]


class Refused(Exception):
    """The compiler does not take a candidate; says why in one line."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """A candidate's cost against the defaults, both taken in the same session.

    `low` and `high` bound the ratios of the rounds (10th and 90th percentile); equal to `ratio` where nothing varies.
    """

    ratio: float  # Median of candidate / defaults: below 1 is faster.
    low: float
    high: float
    value: float  # In the evaluator's unit.
    default_value: float
    same_results: bool | None  # Bit for bit those of the defaults; None when nothing ran.

    def pays(self, least_gain: float) -> bool:
        """Whether it is faster by the fraction `least_gain`, and in (nearly) every round faster at all."""
        return self.ratio <= 1 - least_gain and self.high < 1


class Evaluator(Protocol):
    @property
    def kind(self) -> Literal["measured", "compiled"]: ...

    @property
    def unit(self) -> str:
        """Of `Cost.value`."""
        ...

    def __call__(self, candidate: Candidate, effort: int = 1) -> Cost:
        """The candidate's cost, from `effort` times the usual number of rounds. Raises Refused."""
        ...


def alternated(
    sides: tuple[Callable[[], float], Callable[[], float]], rounds: int, dispatches: int, same_results: bool
) -> Cost:
    """The cost of the second side against the first, the defaults; each call is a dispatch and gives its time.

    Dispatches go default, candidate, candidate, default, …, so that whatever else the machine does meets both alike. A
    round is `dispatches` of each, and its ratio that of their medians.
    """
    for side in sides:
        side()  # Warms up.
    times = np.empty((rounds, dispatches, 2))
    for i in np.ndindex(times.shape[:2]):
        for side in (0, 1) if sum(i) % 2 == 0 else (1, 0):
            times[*i, side] = sides[side]()
    times = np.median(times, axis=1)
    ratios = times[:, 1] / times[:, 0]
    low, ratio, high = np.quantile(ratios, (0.1, 0.5, 0.9)).tolist()
    default_value, value = np.median(times, axis=0).tolist()
    return Cost(ratio, low, high, value, default_value, same_results)
