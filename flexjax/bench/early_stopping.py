"""How many queries a percentile needs before LoadGen lets it count.

MLPerf's early stopping (inference_policies, "early stopping"): a percentile p stands with 99 % confidence
when as few queries over it as were seen would come up in fewer than 1 in 100 runs of a system that misses p.
"""

import functools

from flexjax.bench.scenario import POISSON, ScenarioName

CONFIDENCE = 0.99
_MOST = 2**22  # Queries; enough for a p99.999.


@functools.cache
def queries_needed(percentile: float, over: int = 0) -> int:
    """Fewest queries of which `over` may lie above a latency that the fraction `percentile` keeps.

    459 for p99 and none over, 662 for one over; 64 for p90 and one over.
    """
    from scipy.special import bdtr  # Takes a quarter of a second to import.

    low, high = over, _MOST  # The first never does, the last always.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if bdtr(over, middle, 1 - percentile) <= 1 - CONFIDENCE else (middle, high)
    return high


def needed_to_show(kind: ScenarioName, percentile: float) -> int:
    """Fewest queries of a run whose percentile is worth printing: under limits all may keep it, elsewhere the
    percentile is an estimate, which takes one query above it."""
    return queries_needed(percentile, over=0 if kind in POISSON else 1)
