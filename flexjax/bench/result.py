"""What a benchmark leaves behind: runs of each side, comparisons between them, the whole result.

Plain frozen data, so that the table, the report and the record store can read it without
knowing how it was measured. Times of requests and samples are seconds since their run began.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from flexjax.bench.interval import Interval
from flexjax.bench.metrics import Metrics
from flexjax.bench.scenario import ScenarioName
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
class LoadedAnswer:
    """What a request of a run was answered, to be compared with the reference's answer to the same item."""

    item: int  # Index into the workload.
    token_ids: tuple[int, ...]
    text: str


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
    scenario: str  # What the tables call it: the kind, or e.g. "Offline, ends unknown".
    kind: ScenarioName
    round: int  # From 0; below 0 for a run that is not compared: a calibration, a probe of a search.
    metrics: Metrics
    verdict: Verdict
    timelines: tuple[RequestTimeline, ...]
    answers: tuple[LoadedAnswer, ...]  # Of completed requests.
    samples: tuple[StatsSample, ...]
    described: Mapping[str, Any]  # Software, dtypes, batch limits: flat, JSON-able.
    kernels: Mapping[str, tuple[str, ...]]  # Op → bodies that this side runs; empty where it does not tell.
    startup: StartUp
    peak_memory_bytes: int | None  # Of a process that serves this side alone; None where it is not known.
    energy: Energy | None  # From the first arrival to the last token.
    loadgen: Mapping[str, Any]  # LoadGen's own results and verdict; empty for "replay".
    started_at: str  # ISO 8601, UTC.
    disturbed: tuple[str, ...] = ()  # What else the machine did meanwhile; the run counts, and is marked.


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One measure of one scenario on one side and on the baseline: medians over rounds, and how many times better.

    `ratio` is side / baseline where higher is better and baseline / side where lower is: above 1, the
    side wins. It is the geometric mean of the pairs' own ratios, a pair being the two runs of one round.
    """

    side: str
    scenario: str
    measure: str  # A field of `Metrics.flat()`, e.g. "ttft_p99_ms".
    unit: str  # "ms", "tokens/s", …
    better: Better
    baseline_value: float
    value: float
    ratio: float
    interval: Interval | None  # Of the ratio, 95 %; None with a single pair.
    pairs: int


@dataclasses.dataclass(frozen=True)
class RateSearch:
    """The largest rate of Poisson arrivals that a side serves within its limits, by LoadGen's verdict."""

    side: str
    scenario: str
    held_per_s: float  # The largest rate that it held; 0 where it held none.
    missed_per_s: float  # The smallest that it missed; infinite where it missed none.
    probes: tuple[tuple[float, bool], ...]  # (rate, held) in the order they were tried.


@dataclasses.dataclass(frozen=True)
class Quality:
    """One figure of one side's text quality."""

    side: str
    measure: str  # "bits_per_byte", "rouge_l", …
    unit: str
    better: Better
    value: float
    interval: Interval | None = None  # 95 %, over texts.
    ratio: float | None = None  # What it keeps of the baseline's, on the same texts: above 1 it is better.
    ratio_interval: Interval | None = None
    basis: str = ""  # What it rests on: "52,110 bytes", "459 answers".


@dataclasses.dataclass(frozen=True)
class BenchResult:
    config: Mapping[str, Any]  # The job's whole config as nested dicts.
    sides: tuple[str, ...]  # The baseline, then those compared with it.
    runs: tuple[SideRun, ...]
    comparisons: tuple[Comparison, ...]
    quality: tuple[Quality, ...]
    notes: tuple[str, ...]  # Choices worth a line in the report, e.g. how the Server rate was set.
    valid: bool
    reasons: tuple[str, ...]  # Why the result cannot be trusted: of a run, prefixed by side, scenario and round.
    searches: tuple[RateSearch, ...] = ()
    wall_s: float = float("nan")  # The whole job, set-up of the sides included.

    @property
    def baseline(self) -> str:
        return self.sides[0]
