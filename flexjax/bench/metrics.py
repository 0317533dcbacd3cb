"""Latency, throughput and goodput of one run, from its requests' timelines."""

import dataclasses
from collections.abc import Sequence

import numpy as np

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
    e2e_ms: Distribution  # Arrival → done.
    queue_ms: Distribution  # Arrival → first scheduled; NaN where the target does not tell.
    batch_occupancy: Distribution  # Running sequences, over time.
    cache_use: Distribution  # Fraction of pages in use, over time.
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
