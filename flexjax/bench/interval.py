"""Intervals that hold the true value in 95 of 100 cases, by Student's t."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np

from flexjax.refusal import Refusal

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """`low <= high`; a value whose interval does not hold another differs from it."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def of_mean(values: Sequence[float]) -> Interval | None:
    """Of the mean of independent values: mean ± t · s / √n. None for fewer than two values, which have no spread."""
    if len(values) < 2:
        return None
    centre, half = statistics.fmean(values), half_width(values)
    return Interval(centre - half, centre + half)


def of_ratio(ratios: Sequence[float]) -> Interval | None:
    """Of the geometric mean of independent positive ratios, from their logarithms. None for fewer than two ratios."""
    if not all(ratio > 0 for ratio in ratios):
        raise Refusal(f"Ratios must be positive to have a logarithm; got {list(ratios)}.")
    found = of_mean([math.log(ratio) for ratio in ratios])
    return None if found is None else Interval(math.exp(found.low), math.exp(found.high))


def of_ratio_of_sums(numerators: Sequence[float], denominators: Sequence[float]) -> Interval | None:
    """Of Σ numerators / Σ denominators over independent pairs, linearised: the spread of what each pair adds to it."""
    if len(numerators) < 2:
        return None
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    ratio = above.sum() / below.sum()
    half = half_width(((above - ratio * below) / below.mean()).tolist())
    return Interval(float(ratio - half), float(ratio + half))


def half_width(values: Sequence[float]) -> float:
    """t · s / √n: how far the mean of two or more values may lie from the true one."""
    from scipy.special import stdtrit  # Takes a quarter of a second to import.

    freedom = len(values) - 1
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * statistics.stdev(values) / math.sqrt(len(values))
