import math

import numpy as np
import pytest

from flexjax.bench.interval import Interval, of_mean, of_ratio, of_ratio_of_sums
from flexjax.refusal import Refusal


def test_a_mean_by_the_book():
    # t of 4 degrees of freedom at 97.5 % is 2.776; the standard deviation of 1..5 is 1.5811.
    found = of_mean([1, 2, 3, 4, 5])
    assert found is not None
    assert (found.low, found.high) == pytest.approx((3 - 1.963, 3 + 1.963), abs=1e-3)
    assert 3 in found and 5 not in found


def test_one_value_has_no_spread():
    assert of_mean([1.0]) is of_ratio([2.0]) is of_ratio_of_sums([1.0], [2.0]) is None


def test_turned_over_ratios_give_the_interval_turned_over():
    there, back = of_ratio([1.1, 1.3, 0.9]), of_ratio([1 / 1.1, 1 / 1.3, 1 / 0.9])
    assert there is not None and back is not None
    assert (back.low, back.high) == pytest.approx((1 / there.high, 1 / there.low))


def test_a_ratio_is_positive():
    with pytest.raises(Refusal, match="positive"):
        of_ratio([1.0, 0.0])


@pytest.mark.parametrize("pairs", [3, 4, 8])
def test_ratios_of_equal_sides_hold_one_in_95_of_100(pairs):
    rng = np.random.default_rng(pairs)
    held = sum(
        1.0 in (of_ratio(np.exp(0.1 * rng.standard_normal(pairs)).tolist()) or Interval(2, 2)) for _ in range(2000)
    )
    assert held / 2000 == pytest.approx(0.95, abs=0.015)  # Three standard errors.


def test_a_ratio_of_sums_holds_the_true_one_in_95_of_100():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        size = rng.uniform(50, 200, 100)  # Bytes of a text,
        bits = 1.8 * size + rng.normal(0, 0.1 * size)  # and what a model needs for them.
        held += 1.8 in (of_ratio_of_sums(bits.tolist(), size.tolist()) or Interval(0, 0))
    assert held / 1000 == pytest.approx(0.95, abs=0.025)


def test_equal_parts_have_no_width():
    found = of_ratio_of_sums([2, 4, 6], [1, 2, 3])
    assert found is not None and math.isclose(found.low, 2) and math.isclose(found.high, 2)
