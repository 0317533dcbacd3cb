"""Made-up benchmark results: a static batch against a continuous one under several loads, and a ladder of six sides."""

import dataclasses
import statistics

import numpy as np
import pytest

from flexjax.bench import interval
from flexjax.bench.interval import Interval
from flexjax.bench.metrics import summarise
from flexjax.bench.result import (
    BenchResult,
    Better,
    Comparison,
    LoadedAnswer,
    Quality,
    RateSearch,
    RequestTimeline,
    SideRun,
    StartUp,
    StatsSample,
    Verdict,
)
from flexjax.bench.scenario import POISSON, Limits, ScenarioName
from flexjax.hardware.energy import Energy

TITLES: dict[str, ScenarioName] = {
    "SingleStream": "SingleStream",
    "Offline": "Offline",
    "Offline, ends unknown": "Offline",
    "Server": "Server",
    "Server, overload": "Server",
    "Interactive": "Interactive",
    "replay": "replay",
}
LADDER = ("stock", "engine, float32", "engine, bfloat16", "engine, int8 weights", "engine, int8 and cache", "optimised")

MEASURES: tuple[tuple[str, str, Better], ...] = (
    ("output_tokens_per_s", "tokens/s", "higher"),
    ("goodput_requests_per_s", "requests/s", "higher"),
    ("ttft_p50_ms", "ms", "lower"),
    ("ttft_p99_ms", "ms", "lower"),
    ("tpot_p50_ms", "ms", "lower"),
    ("tpot_p99_ms", "ms", "lower"),
    ("gap_p50_ms", "ms", "lower"),
    ("e2e_p50_ms", "ms", "lower"),
    ("e2e_p99_ms", "ms", "lower"),
)


def _timelines(rng, slow: float, batched: bool, kind: str, count: int) -> tuple[RequestTimeline, ...]:
    """Arrivals at 8 a second (all at once in Offline), one every service time for the slow side."""
    free_at, out = 0.0, []
    for i in range(count):
        arrival = 0.0 if kind == "Offline" else i / 8 + float(rng.uniform(0, 0.05))
        start = max(arrival, free_at) + 0.002
        tokens = int(rng.integers(8, 48))
        first = start + 0.01 * slow * float(rng.uniform(0.8, 1.4))
        gaps = 0.0015 * slow * rng.uniform(0.8, 1.5, tokens - 1)
        gaps[rng.uniform(size=tokens - 1) < 0.3] = 0.0  # Handed over together with the token before.
        times = (first, *(first + np.cumsum(gaps)).tolist())
        free_at = start + (times[-1] - start) * (0.1 if batched else 0.6)
        out.append(
            RequestTimeline(
                f"r{i}", arrival, start, first, times[-1], int(rng.integers(16, 400)), tokens, tokens, times
            )
        )
    return tuple(out)


def _samples(timelines) -> tuple[StatsSample, ...]:
    end = max(t.done_s for t in timelines)
    out = []
    for time in np.linspace(0, end, 200):
        running = sum(t.scheduled_s <= time < t.done_s for t in timelines)
        waiting = sum(t.arrival_s <= time < t.scheduled_s for t in timelines)
        out.append(StatsSample(float(time), running, waiting, min(1.0, running / 40)))
    return tuple(out)


def _run(rng, side: str, slow: float, title: str, index: int, count: int) -> SideRun:
    kind = TITLES[title]
    timelines = _timelines(rng, slow, side != "stock", kind, count)
    samples = _samples(timelines)
    # The same title, the same load: the second round of the first side met a neighbour.
    disturbed = ("another process used 31 % of the cores",) if (side, index) == ("stock", 1) else ()
    return SideRun(
        side=side,
        scenario=title,
        kind=kind,
        round=index,
        metrics=summarise(timelines, samples, Limits(500.0, 30.0) if kind in POISSON else None),
        verdict=Verdict(True),
        timelines=timelines,
        answers=(LoadedAnswer(0, (1, 2), "ab"),),
        samples=samples,
        described={"software": f"flexjax {side}", "weights_dtype": "float32", "cache_dtype": "float32"},
        kernels={} if side == "stock" else {"ragged_paged_attention": ("cpu_ffi",), "matmul": ("a", "b")},
        startup=StartUp(0.4, 3.0 if side == "stock" else 6.5),
        peak_memory_bytes=(600 if side == "stock" else 300) * 2**20,
        energy=Energy(2.4 * slow, "estimated", "2 cores at 3 W"),
        loadgen={} if kind == "replay" else {"result_validity": "VALID", "num_errors": 0},
        started_at=f"2026-01-01T00:00:{max(index, 0):02}+00:00",
        disturbed=disturbed,
    )


def compare(runs, sides) -> tuple[Comparison, ...]:
    """What `ab.compare` promises, in few words: medians, geometric means of the rounds' ratios, their interval."""
    found = []
    for side in sides[1:]:
        for title in dict.fromkeys(run.scenario for run in runs):
            mine = [run for run in runs if run.scenario == title and run.round >= 0]
            for measure, unit, better in MEASURES:
                a, b = ([r.metrics.flat()[measure] for r in mine if r.side == name] for name in (sides[0], side))
                if not b or not all(x > 0 for x in (*a, *b)):  # NaN is not, either.
                    continue
                ratios = [y / x if better == "higher" else x / y for x, y in zip(a, b, strict=True)]
                found.append(
                    Comparison(
                        side,
                        title,
                        measure,
                        unit,
                        better,
                        statistics.median(a),
                        statistics.median(b),
                        statistics.geometric_mean(ratios),
                        interval.of_ratio(ratios),
                        len(ratios),
                    )
                )
    return tuple(found)


def _quality(sides, rng):
    yield Quality(sides[0], "bits_per_byte", "bits/byte", "lower", 1.301, Interval(1.28, 1.32), basis="52,110 bytes")
    for side in sides[1:]:
        ratio = float(rng.uniform(0.996, 1.0))
        kept = ratio, Interval(ratio - 1e-3, ratio + 1e-3)
        bits = Interval(1.281, 1.323)
        yield Quality(side, "bits_per_byte", "bits/byte", "lower", 1.301 / ratio, bits, *kept, basis="52,110 bytes")
        yield Quality(side, "rouge_l", "%", "higher", 98.7, Interval(98.1, 99.3), basis="459 answers")


def make(titles=tuple(TITLES)[:4], rounds=2, count=80, sides=("stock", "optimised")) -> BenchResult:
    rng = np.random.default_rng(0)
    slowness = dict(zip(sides, np.geomspace(5.0, 1.0, len(sides)).tolist(), strict=True))
    runs = [
        _run(rng, side, slow, title, index, count)
        for title in titles
        for index in range(rounds)
        for side, slow in (slowness.items() if index % 2 == 0 else reversed(slowness.items()))
        if "," not in title or side in (sides[0], sides[-1])  # Variants are for the first and the last alone.
    ]
    probes = ()
    if "Server" in titles:
        probe = _run(rng, "stock", 5.0, "Server", -1, 20)
        probes = (dataclasses.replace(probe, scenario="Server, probe at 8.0/s"),)
    return BenchResult(
        config={"model": {"path": "somewhere/tiny"}, "rounds": rounds, "engine": {"max_num_seqs": 16}},
        sides=sides,
        runs=(*probes, *runs),
        comparisons=compare(runs, sides),
        quality=tuple(_quality(sides, rng)),
        notes=("The Server rate is 0.8 × what stock held.",),
        valid=True,
        reasons=(),
        searches=tuple(
            RateSearch(side, "Server", 40 / slow, 44 / slow, ((20 / slow, True), (44 / slow, False), (40 / slow, True)))
            for side, slow in slowness.items()
        )
        if probes
        else (),
        wall_s=242.0,
    )


@pytest.fixture(scope="session")
def result() -> BenchResult:
    """Four scenarios on two sides, two rounds."""
    return make()


@pytest.fixture(scope="session")
def ladder() -> BenchResult:
    """Six sides, three rounds, names as long as a table takes."""
    return make(("SingleStream", "Offline", "Server"), rounds=3, count=40, sides=LADDER)


@pytest.fixture(scope="session")
def small() -> BenchResult:
    """One scenario, two rounds."""
    return make(("Server",))


@pytest.fixture(scope="session")
def invalid(small) -> BenchResult:
    """The same with one run that does not count."""
    reason = "3 of 80 requests failed; the first: r7 (12 in, 0 of 20 out, <out of pages>)"
    probe, first, *others = small.runs
    first = dataclasses.replace(first, verdict=Verdict(False, (reason,)))
    reasons = (f"stock, {first.scenario}, round 0: {reason}",)
    return dataclasses.replace(small, runs=(probe, first, *others), valid=False, reasons=reasons)


@pytest.fixture(scope="session")
def remote(small) -> BenchResult:
    """The other side is a server behind a URL that tells nothing of its inside."""

    def change(run: SideRun) -> SideRun:
        if run.side == "stock":
            return run
        timelines = tuple(dataclasses.replace(t, scheduled_s=None) for t in run.timelines)
        described = {"software": "uvicorn", "url": "http://127.0.0.1:8000"}
        metrics = summarise(timelines, (), None)
        return dataclasses.replace(
            run,
            timelines=timelines,
            samples=(),
            metrics=metrics,
            described=described,
            kernels={},
            peak_memory_bytes=None,
        )

    runs = [change(run) for run in small.runs]
    return dataclasses.replace(small, runs=tuple(runs), comparisons=compare(runs, small.sides), quality=())
