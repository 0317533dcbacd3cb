"""Latency, throughput and goodput of one run, from its requests' timelines."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flexjax.bench.scenario import Limits

if TYPE_CHECKING:  # result.py holds a Metrics.
    from flexjax.bench.result import RequestTimeline, StatsSample

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99_9": 99.9}


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Percentiles by linear interpolation between closest ranks (numpy's default), and the mean.

    All are NaN where nothing was observed.
    """

    p50: float
    p90: float
    p95: float
    p99: float
    p99_9: float
    mean: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Distribution":
        if not len(values):
            nan = float("nan")
            return cls(nan, nan, nan, nan, nan, nan)
        points = np.percentile(np.asarray(values, np.float64), list(PERCENTILES.values()))
        return cls(*map(float, points), mean=float(np.mean(values)))


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Every latency counts from the *scheduled* arrival; rates are over first arrival → last token."""

    ttft_ms: Distribution  # Arrival → first token.
    tpot_ms: Distribution  # (last - first token) / (tokens - 1), one value a request of 2+ tokens.
    itl_ms: Distribution  # Gap between neighbouring tokens, over all gaps; 0 within one hand-over.
    gap_ms: Distribution  # Gap between neighbouring hand-overs, each of one token or several.
    e2e_ms: Distribution  # Arrival → done.
    queue_ms: Distribution  # Arrival → first scheduled; NaN where the target does not tell.
    batch_occupancy: Distribution  # Running sequences, one sample a step.
    cache_use: Distribution  # Fraction of the cache in use, one sample a step.
    output_tokens_per_s: float
    total_tokens_per_s: float  # Prompt and output.
    requests_per_s: float
    goodput_requests_per_s: float  # Those within both limits; NaN in a scenario without limits.
    goodput_fraction: float  # Of all requests, failed ones included.
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int
    duration_s: float

    def flat(self) -> dict[str, float]:
        """Every figure by one name with its unit at the end: `ttft_p99_ms`, `cache_use_mean`."""
        out: dict[str, float] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, Distribution):
                out[field.name] = value
                continue
            stem, unit = (field.name[:-3], "_ms") if field.name.endswith("_ms") else (field.name, "")
            out |= {f"{stem}_{point}{unit}": x for point, x in dataclasses.asdict(value).items()}
        return out

    def to_columns(self) -> dict[str, float]:
        """`flat()` as the record's dotted columns: `metrics.ttft_p99_ms`."""
        return {f"metrics.{name}": value for name, value in self.flat().items()}


def summarise(
    timelines: Sequence["RequestTimeline"], samples: Sequence["StatsSample"], limits: Limits | None
) -> Metrics:
    """The metrics of one run. Latencies are those of completed requests; failed ones only count as failed."""
    done = [t for t in timelines if t.completed]
    ttfts = [1e3 * (t.first_token_s - t.arrival_s) for t in done if t.first_token_s is not None]
    tpots = [tpot_ms(t) for t in done if t.n_out > 1]
    gaps = [1e3 * (b - a) for t in done for a, b in itertools.pairwise(t.token_times_s)]
    ends = [t.done_s for t in done if t.done_s is not None]
    start = min((t.arrival_s for t in timelines), default=0.0)
    duration = max(ends, default=start) - start
    n_in, n_out = sum(t.n_in for t in done), sum(t.n_out for t in done)
    good = sum(is_good(t, limits) for t in done) if limits else float("nan")
    rate = lambda count: count / duration if duration > 0 else float("nan")
    return Metrics(
        ttft_ms=Distribution.of(ttfts),
        tpot_ms=Distribution.of(tpots),
        itl_ms=Distribution.of(gaps),
        gap_ms=Distribution.of([gap for gap in gaps if gap > 0]),
        e2e_ms=Distribution.of([1e3 * (t.done_s - t.arrival_s) for t in done if t.done_s is not None]),
        queue_ms=Distribution.of([1e3 * (t.scheduled_s - t.arrival_s) for t in done if t.scheduled_s is not None]),
        batch_occupancy=Distribution.of([s.running for s in samples]),
        cache_use=Distribution.of([s.used_pages for s in samples]),
        output_tokens_per_s=rate(n_out),
        total_tokens_per_s=rate(n_in + n_out),
        requests_per_s=rate(len(done)),
        goodput_requests_per_s=rate(good),
        goodput_fraction=good / len(timelines) if timelines else float("nan"),
        completed=len(done),
        failed=len(timelines) - len(done),
        input_tokens=n_in,
        output_tokens=n_out,
        duration_s=duration,
    )


def tpot_ms(timeline: "RequestTimeline") -> float:
    """Milliseconds a token after the first; 0 for an answer of one token."""
    times = timeline.token_times_s
    return 1e3 * (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0


def is_good(timeline: "RequestTimeline", limits: Limits) -> bool:
    """Whether a completed request kept both limits."""
    first = timeline.first_token_s
    if first is None:
        return False
    return 1e3 * (first - timeline.arrival_s) <= limits.ttft_ms and tpot_ms(timeline) <= limits.tpot_ms
