"""A made-up benchmark result: a static batch against a continuous one, under four loads."""

import dataclasses

import numpy as np
import pytest

from flexjax.bench import ab
from flexjax.bench.metrics import summarise
from flexjax.bench.result import BenchResult, Quality, RequestTimeline, SideRun, StartUp, StatsSample, Verdict
from flexjax.bench.scenario import Limits
from flexjax.hardware.energy import Energy


def _timelines(rng, side: str, scenario: str, count: int) -> tuple[RequestTimeline, ...]:
    """Arrivals at 8 a second (all at once in Offline), one every service time for the slow side."""
    slow = 5.0 if side == "stock" else 1.0
    free_at, out = 0.0, []
    for i in range(count):
        arrival = 0.0 if scenario == "Offline" else i / 8 + float(rng.uniform(0, 0.05))
        start = max(arrival, free_at) + 0.002
        tokens = int(rng.integers(8, 48))
        first = start + 0.01 * slow * float(rng.uniform(0.8, 1.4))
        gaps = 0.0015 * slow * rng.uniform(0.8, 1.5, tokens - 1)
        times = (first, *(first + np.cumsum(gaps)).tolist())
        free_at = start + (times[-1] - start) * (0.6 if side == "stock" else 0.1)
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


def make(scenarios=("SingleStream", "Offline", "Server", "Interactive"), rounds=2, count=80) -> BenchResult:
    rng = np.random.default_rng(0)
    runs = []
    for scenario in scenarios:
        for index in range(rounds):
            for side in ("stock", "optimised"):
                timelines = _timelines(rng, side, scenario, count)
                samples = _samples(timelines)
                limits = Limits(500.0, 30.0) if scenario in ("Server", "Interactive") else None
                runs.append(
                    SideRun(
                        side=side,
                        scenario=scenario,
                        round=index,
                        metrics=summarise(timelines, samples, limits),
                        verdict=Verdict(True),
                        timelines=timelines,
                        samples=samples,
                        described={"software": f"flexjax {side}", "weights_dtype": "float32", "cache_dtype": "float32"},
                        startup=StartUp(0.4, 3.0 if side == "stock" else 6.5),
                        peak_memory_bytes=600 * 2**20,
                        energy=Energy(12.0 if side == "stock" else 4.0, "estimated", "2 cores at 3 W"),
                        loadgen={"result_validity": "VALID", "num_errors": 0},
                        started_at=f"2026-01-01T00:00:{index:02}+00:00",
                    )
                )
    sides = ("stock", "optimised")
    return BenchResult(
        config={"model": {"path": "somewhere/tiny"}, "rounds": rounds, "engine": {"max_num_seqs": 16}},
        sides=sides,
        runs=tuple(runs),
        comparisons=ab.compare(runs, sides),
        quality=(
            Quality("stock", "bits_per_byte", "bits", "lower", 1.301),
            Quality("optimised", "bits_per_byte", "bits", "lower", 1.3022),
            Quality("optimised", "rouge_l", "%", "higher", 98.7),
        ),
        notes=("The Server rate is 1.5 × what stock sustains.",),
        valid=True,
        reasons=(),
    )


@pytest.fixture(scope="session")
def result() -> BenchResult:
    return make()


@pytest.fixture(scope="session")
def small() -> BenchResult:
    """One scenario, two rounds."""
    return make(("Server",))


@pytest.fixture(scope="session")
def invalid(small) -> BenchResult:
    """The same with one run that does not count."""
    reason = "3 of 80 requests failed; the first: r7 (12 in, 0 of 20 out, <out of pages>)"
    first = dataclasses.replace(small.runs[0], verdict=Verdict(False, (reason,)))
    reasons = (f"stock, {first.scenario}, round 0: {reason}",)
    return dataclasses.replace(small, runs=(first, *small.runs[1:]), valid=False, reasons=reasons)


@pytest.fixture(scope="session")
def remote(small) -> BenchResult:
    """Side B is a server behind a URL that tells nothing of its inside."""

    def change(run: SideRun) -> SideRun:
        if run.side == "stock":
            return run
        timelines = tuple(dataclasses.replace(t, scheduled_s=None) for t in run.timelines)
        described = {"software": "uvicorn", "url": "http://127.0.0.1:8000"}
        metrics = summarise(timelines, (), None)
        return dataclasses.replace(run, timelines=timelines, samples=(), metrics=metrics, described=described)

    runs = [change(run) for run in small.runs]
    return dataclasses.replace(small, runs=tuple(runs), comparisons=ab.compare(runs, small.sides), quality=())
