"""Whether a run counts. LoadGen's verdict is asked, and what it does not notice is checked again.

LoadGen calls a run VALID in which no first token was ever reported (TTFT is 0) or no token counted
(0 tokens/s); so its figures are compared with ours, which come from the token events themselves.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flexjax.bench.result import RequestTimeline, Verdict
from flexjax.bench.scenario import POISSON, Scenario
from flexjax.engine.device import MOST_CLIPPED

# LoadGen stamps a first token when our call reaches it, after the token's own time stamp and after
# the neighbours handed over before it; on a busy machine the thread may lose the CPU in between.
TTFT_TOLERANCE_MS = 20.0
TTFT_TOLERANCE = 0.10  # Of the larger of the two.

OVER_LIMITS = "over its limits"
TOO_FEW = "too few queries to judge its limits"

# LoadGen's log keeps six significant digits of each of the factors that give its token count.
TOKEN_COUNT_TOLERANCE = 3e-5


def check(
    scenario: Scenario,
    timelines: Sequence[RequestTimeline],
    *,
    faults: Sequence[str],
    compiles: int,
    loadgen: Mapping[str, Any],
) -> Verdict:
    """The verdict of one run, with every reason against it.

    `compiles` counts programs compiled inside the measured window. A run that misses its latency
    limits is valid: the miss is its result, which `limits_missed` words.
    """
    reasons = list(faults)
    reasons += _check_requests(scenario, timelines)
    if compiles:
        reasons.append(f"{compiles} programs were compiled inside the measured window; warm every shape at start")
    if scenario.name != "replay":
        reasons += _check_loadgen(scenario, loadgen)
        reasons += _cross_check(scenario, timelines, loadgen)
    return Verdict(not reasons, tuple(reasons))


def check_cache(written: int, clipped: int) -> Iterator[str]:
    """What speaks against a run whose cache clipped so many of the values written."""
    if clipped > MOST_CLIPPED * written:
        yield (
            f"the cache clipped {clipped / written:.2%} of its keys and values, more than {MOST_CLIPPED:.1%}; "
            'serve with cache_dtype="bfloat16"'
        )


def limits_missed(kind: str, loadgen: Mapping[str, Any]) -> str:
    """What LoadGen says against a run's latency limits, in words; empty where they are kept, or there are none."""
    if kind not in POISSON:
        return ""
    if not loadgen.get("result_perf_constraints_met", True):
        return OVER_LIMITS
    return "" if loadgen.get("early_stopping_met", True) else TOO_FEW


def _check_requests(scenario: Scenario, timelines: Sequence[RequestTimeline]) -> Iterator[str]:
    if len(timelines) < scenario.queries:
        yield f"{len(timelines)} requests were made, {scenario.queries} asked for"
    checks = {
        "failed": lambda t: not t.completed,
        "gave a wrong number of tokens": lambda t: t.completed and t.n_out != t.n_requested,
        "have no first token after their arrival": lambda t: (
            t.completed and (t.first_token_s is None or t.first_token_s <= t.arrival_s)
        ),
        "have times out of order": lambda t: t.completed and not _ordered(t),
    }
    for what, broken in checks.items():
        found = [t for t in timelines if broken(t)]
        if found:
            yield f"{len(found)} of {len(timelines)} requests {what}; the first: {_brief(found[0])}"


def _ordered(t: RequestTimeline) -> bool:
    times = [x for x in (t.arrival_s, t.scheduled_s, t.first_token_s, *t.token_times_s[1:], t.done_s) if x is not None]
    return all(a <= b for a, b in itertools.pairwise(times))


def _brief(t: RequestTimeline) -> str:
    return f"{t.id} ({t.n_in} in, {t.n_out} of {t.n_requested} out{f', {t.error}' if t.error else ''})"


def _check_loadgen(scenario: Scenario, loadgen: Mapping[str, Any]) -> Iterator[str]:
    errors = loadgen.get("num_errors")
    if errors != 0:
        kinds = list(dict.fromkeys(loadgen.get("error_messages", ())))
        yield f"LoadGen counted {errors} errors: {'; '.join(kinds[:3]) or 'log incomplete'}"
    rules = {"result_min_duration_met": "minimum duration", "result_min_queries_met": "minimum query count"}
    for key, what in rules.items():
        if not loadgen.get(key):
            yield f"LoadGen: the {what} was not met"
    if scenario.poisson:
        if loadgen.get("result_validity") != "VALID" and not limits_missed(scenario.name, loadgen) and not errors:
            yield f"LoadGen says {loadgen.get('result_validity')}"
    elif not loadgen.get("early_stopping_met"):
        yield f"LoadGen: too few queries for p{100 * scenario.percentile:g} (early stopping)"


def _cross_check(scenario: Scenario, timelines: Sequence[RequestTimeline], loadgen: Mapping[str, Any]) -> Iterator[str]:
    ours = sum(t.n_out for t in timelines)
    theirs = token_count(scenario, len(timelines), loadgen)
    if not abs(theirs - ours) <= max(0.5, TOKEN_COUNT_TOLERANCE * ours):  # NaN is no agreement.
        yield f"LoadGen was told of {theirs:.0f} tokens, {ours} were handed over"
    key = "result_first_token_99.00_percentile_latency_ns"
    ttfts = sorted(1e3 * (t.first_token_s - t.arrival_s) for t in timelines if t.first_token_s is not None)
    if key not in loadgen or not ttfts:
        return
    # LoadGen's percentile is the element at floor(n × p) of the sorted values.
    mine, its = ttfts[min(int(0.99 * len(ttfts)), len(ttfts) - 1)], loadgen[key] / 1e6
    tolerance = TTFT_TOLERANCE_MS + TTFT_TOLERANCE * max(mine, its)
    if its <= 0 or abs(mine - its) > tolerance:
        yield f"p99 TTFT is {mine:.1f} ms by the token events and {its:.1f} ms by LoadGen (tolerance {tolerance:.0f})"


def token_count(scenario: Scenario, queries: int, loadgen: Mapping[str, Any]) -> float:
    """The output tokens that LoadGen counted, recovered from its rates.

    Offline logs tokens and samples per second over the same time. The others log
    `result_token_throughput`, tokens per nanosecond of summed latency. NaN where a factor is missing.
    """
    nan = float("nan")
    if scenario.name == "Offline":
        samples = loadgen.get("result_samples_per_second", nan)
        return queries * loadgen.get("result_tokens_per_second", nan) / samples if samples else nan
    return queries * loadgen.get("result_mean_latency_ns", nan) * loadgen.get("result_token_throughput", nan)
