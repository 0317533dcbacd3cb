"""What a candidate costs: the contract between the search and those who measure or compile."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, Protocol

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
