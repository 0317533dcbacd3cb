"""What a benchmark leaves behind: runs of each side, comparisons between them, the whole result.

Plain frozen data, so that the table, the report and the record store can read it without
knowing how it was measured. Times of requests and samples are seconds since their run began.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from flexjax.bench.metrics import Metrics
from flexjax.hardware.energy import Energy

Better = Literal["higher", "lower"]
Kind = Literal["measured", "estimated", "compiled"]


@dataclasses.dataclass(frozen=True)
class StartUp:
    """Seconds that a side needed before it could serve its first request."""

    load_s: float  # Weights read and placed.
    compile_s: float  # Every step shape compiled (or fetched from the persistent cache) and warmed.


@dataclasses.dataclass(frozen=True)
class RequestTimeline:
    """One request's life, in seconds since the run began.

    Invariants of a completed one: `arrival_s <= scheduled_s <= first_token_s <= done_s`,
    `token_times_s` never falls and has `n_out` entries. Tokens handed over together share a time.
    """

    id: str
    arrival_s: float  # Scheduled arrival, not the moment a client got round to sending it.
    scheduled_s: float | None  # First rows in a step; None where the target does not tell (HTTP).
    first_token_s: float | None
    done_s: float | None
    n_in: int
    n_out: int
    n_requested: int  # Output tokens asked for.
    token_times_s: tuple[float, ...]
    error: str = ""  # Why it failed; empty when it completed.

    @property
    def completed(self) -> bool:
        return not self.error and self.done_s is not None


@dataclasses.dataclass(frozen=True)
class StatsSample:
    """What a target was doing at one instant."""

    time_s: float
    running: int  # Sequences in the batch.
    waiting: int  # Requests in the queue.
    used_pages: float  # Fraction of the cache in use, 0..1.


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a run counts, and every reason why it does not."""

    valid: bool
    reasons: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SideRun:
    """One scenario on one side in one round."""

    side: str  # Name of the side, e.g. "stock", "optimised".
    scenario: str  # "SingleStream", "Offline", "Server", "Interactive", "replay".
    round: int  # From 0.
    metrics: Metrics
    verdict: Verdict
    timelines: tuple[RequestTimeline, ...]
    samples: tuple[StatsSample, ...]
    described: Mapping[str, Any]  # Software, dtypes, bodies that ran, batch limits: flat, JSON-able.
    startup: StartUp
    peak_memory_bytes: int | None  # Of the process, during the run; None where it cannot be read.
    energy: Energy | None
    loadgen: Mapping[str, Any]  # LoadGen's own results and verdict; empty for "replay".
    started_at: str  # ISO 8601, UTC.


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One measure of one scenario on both sides: medians over rounds, and how many times better B is.

    `ratio` is B / A where higher is better and A / B where lower is: above 1, B wins. It is the
    median of the rounds' own ratios; `ratio_min` and `ratio_max` are their spread.
    """

    scenario: str
    measure: str  # A field of `Metrics.flat()`, e.g. "ttft_p99_ms".
    unit: str  # "ms", "tokens/s", …
    better: Better
    a: float
    b: float
    ratio: float
    ratio_min: float
    ratio_max: float


@dataclasses.dataclass(frozen=True)
class Quality:
    """One figure of one side's text quality."""

    side: str
    measure: str  # "bits_per_byte", "rouge_l"
    unit: str
    better: Better
    value: float


@dataclasses.dataclass(frozen=True)
class BenchResult:
    config: Mapping[str, Any]  # The job's whole config as nested dicts.
    sides: tuple[str, str]  # Names of A and B.
    runs: tuple[SideRun, ...]
    comparisons: tuple[Comparison, ...]
    quality: tuple[Quality, ...]
    notes: tuple[str, ...]  # Choices worth a line in the report, e.g. how the Server rate was set.
    valid: bool
    reasons: tuple[str, ...]  # Every reason of every invalid run, prefixed by side, scenario and round.
