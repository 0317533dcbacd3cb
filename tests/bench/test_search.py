import math

import pytest

from flexjax.bench.search import SearchConfig, largest_rate
from flexjax.refusal import Refusal


@pytest.mark.parametrize("start", [3.0, 50.0, 99.0, 101.0, 1000.0])
@pytest.mark.parametrize("limit", [7.3, 100.0, 812.0])
def test_it_closes_in_on_the_limit(start, limit):
    found = largest_rate(lambda rate: rate <= limit, start, SearchConfig(precision=0.05, probes=40))
    assert found.held <= limit < found.missed <= 1.05 * found.held
    assert all(held == (rate <= limit) for rate, held in found.probes)


def test_it_ends_with_its_probes():
    found = largest_rate(lambda rate: True, 10.0, SearchConfig(probes=3))
    assert [rate for rate, _ in found.probes] == [10.0, 12.5, 19.53125]
    assert (found.held, found.missed) == (19.53125, math.inf)
    found = largest_rate(lambda rate: False, 10.0, SearchConfig(probes=2))
    assert (found.held, found.missed) == (0.0, 8.0)


def test_a_search_needs_a_probe():
    with pytest.raises(Refusal, match="one probe"):
        SearchConfig(probes=0)
