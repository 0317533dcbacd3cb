"""A baseline and the sides compared with it, in pairs of runs under one load, and how many times better each is."""

import contextlib
import dataclasses
import datetime
import gc
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flexjax.bench import validity
from flexjax.bench.early_stopping import needed_to_show
from flexjax.bench.interval import of_ratio
from flexjax.bench.loadgen import LoadRun, Progress, run_loadgen
from flexjax.bench.metrics import PERCENTILES, summarise
from flexjax.bench.replay import run_replay
from flexjax.bench.result import Better, Comparison, SideRun, StartUp
from flexjax.bench.scenario import OVERLOAD, Scenario
from flexjax.bench.target import Prepares, Target
from flexjax.bench.workload import Item
from flexjax.hardware.compile_cache import CompileCounter
from flexjax.hardware.contention import Contention
from flexjax.hardware.energy import EnergyMeter

# What sides are compared by: a field of `Metrics.flat()`, its unit, which way is better.
RATES: tuple[tuple[str, str, Better], ...] = (
    ("output_tokens_per_s", "tokens/s", "higher"),
    ("total_tokens_per_s", "tokens/s", "higher"),
    ("requests_per_s", "requests/s", "higher"),
    ("goodput_requests_per_s", "requests/s", "higher"),
)
LATENCIES: tuple[tuple[str, str, Better], ...] = tuple(
    (f"{stem}_{point}_ms", "ms", "lower")
    for stem in ("ttft", "tpot", "itl", "gap", "e2e", "queue")
    for point in ("p50", "p90", "p99", "p99_9")
)


@dataclasses.dataclass(frozen=True)
class Side:
    """A started target, and what is known of it before its first run."""

    target: Target
    startup: StartUp
    kernels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # Op → bodies that it runs.
    passed_over: tuple[str, ...] = ()  # Bodies that would have come first, and why they could not serve.
    peak_memory_bytes: int | None = None  # Of a process that serves this side alone.


@dataclasses.dataclass(frozen=True)
class Load:
    """One scenario as each side gets it: what is asked, and of which side how much."""

    items: Sequence[Item]
    scenarios: Mapping[str, Scenario]  # Side → scenario. Offline gives each side what fills the window.


def measure(
    side: Side,
    scenario: Scenario,
    items: Sequence[Item],
    *,
    round_index: int,
    log_directory: Path,
    progress: Progress = lambda done, total: None,
    quiet_loop_s: float | None = None,
) -> SideRun:
    """One scenario on one side. `quiet_loop_s` is what the fixed loop of `hardware.contention` takes undisturbed."""
    target = side.target
    if isinstance(target, Prepares):
        target.prepare()
    before = target.stats()
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    elsewhere = "url" in target.describe()
    with (
        _garbage_set_aside(),
        CompileCounter() as compiles,
        Contention(quiet_loop_s, others_expected=elsewhere) as watch,
        EnergyMeter() as meter,
    ):
        load = _run(scenario, items, target, log_directory, progress)
        end = time.perf_counter()
    after = target.stats()
    written = after.cache_values_written - before.cache_values_written
    clipped = after.cache_values_clipped - before.cache_values_clipped
    verdict = validity.check(
        scenario,
        load.timelines,
        faults=[*load.faults, *validity.check_cache(written, clipped)],
        compiles=compiles.programs,
        loadgen=load.loadgen,
    )
    samples = tuple(
        dataclasses.replace(sample, time_s=sample.time_s - load.start)
        for sample in after.samples
        if load.start <= sample.time_s <= end
    )
    last = max((t.done_s for t in load.timelines if t.done_s is not None), default=0.0)
    return SideRun(
        side=target.name,
        scenario=scenario.title,
        kind=scenario.name,
        round=round_index,
        metrics=summarise(load.timelines, samples, scenario.limits),
        verdict=verdict,
        timelines=load.timelines,
        answers=load.answers,
        samples=samples,
        described=target.describe()
        | {
            "steps": len(samples),
            "host_s": after.host_s - before.host_s,
            "device_s": after.device_s - before.device_s,
        }
        | ({"cache_values_written": written, "cache_values_clipped": clipped} if written else {}),
        kernels=side.kernels,
        startup=side.startup,
        peak_memory_bytes=side.peak_memory_bytes,
        energy=meter.between(load.start, load.start + last),
        loadgen=load.loadgen,
        started_at=started_at,
        disturbed=watch.reasons,
    )


@contextlib.contextmanager
def _garbage_set_aside() -> Iterator[None]:
    """Collects what earlier runs left now, rather than inside the window, and has the collector leave alone what stays
    of them."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _run(scenario: Scenario, items: Sequence[Item], target: Target, log_directory: Path, progress: Progress) -> LoadRun:
    if scenario.name == "replay":
        return run_replay(items, target.submit, progress=progress)
    return run_loadgen(scenario, items, target.submit, log_directory, progress=progress)


def alternate(sides: Sequence[Side], loads: Sequence[Load], rounds: int) -> Iterator[tuple[int, Side, Scenario, Load]]:
    """Each round runs every load on every side, forwards and in the next round backwards: A B, then B A.

    So the two runs of a pair stand next to each other, and a machine that becomes faster or slower favours
    neither side. A round has its own seed, the same for all sides.
    """
    for index in range(rounds):
        for load in loads:
            taking = [side for side in sides if side.target.name in load.scenarios]
            for side in taking if index % 2 == 0 else taking[::-1]:
                scenario = load.scenarios[side.target.name]
                yield index, side, dataclasses.replace(scenario, seed=(scenario.seed + index) % 2**32), load


def compare(runs: Sequence[SideRun], sides: Sequence[str]) -> tuple[Comparison, ...]:
    """Each side with the baseline, which comes first, by every measure that both have; in the order of the runs.

    A pair is the two runs of a round. Left out are
    - percentiles that a run has too few requests for (`early_stopping.needed_to_show`);
    - latencies of Offline, where all arrive at once, of an overload, and of a scenario in which a side misses its
    limits in most rounds: they grow with the length of the run and say nothing of the side.
    """
    baseline, *others = sides
    compared = [run for run in runs if run.round >= 0]
    found = []
    for scenario in dict.fromkeys(run.scenario for run in compared):
        by_side = {side: {r.round: r for r in compared if (r.scenario, r.side) == (scenario, side)} for side in sides}
        for side in others:
            rounds = sorted(by_side[baseline].keys() & by_side[side].keys())
            pairs = [(by_side[baseline][r], by_side[side][r]) for r in rounds]
            found += [c for measure in _measures(pairs) if (c := _compare(pairs, *measure)) is not None]
    return tuple(found)


def _measures(pairs: Sequence[tuple[SideRun, SideRun]]) -> Iterator[tuple[str, str, Better]]:
    yield from RATES
    if not pairs or any(_saturated(runs) for runs in zip(*pairs, strict=True)):
        return
    fewest = min(run.metrics.completed for pair in pairs for run in pair)
    for measure, unit, better in LATENCIES:
        point = measure.split("_", 1)[1].removesuffix("_ms")
        if fewest >= needed_to_show(pairs[0][0].kind, PERCENTILES[point] / 100):
            yield measure, unit, better


def _saturated(runs: Sequence[SideRun]) -> bool:
    """Whether requests came faster than the side served them."""
    if runs[0].kind == "Offline" or runs[0].scenario == OVERLOAD:
        return True
    missed = [validity.limits_missed(run.kind, run.loadgen) == validity.OVER_LIMITS for run in runs]
    return 2 * sum(missed) > len(missed)


def _compare(pairs: Sequence[tuple[SideRun, SideRun]], measure: str, unit: str, better: Better) -> Comparison | None:
    values = [(a.metrics.flat()[measure], b.metrics.flat()[measure]) for a, b in pairs]
    # A closed loop has no queue to speak of, a scenario without limits no goodput: 0 or NaN has no ratio.
    if not values or not all(math.isfinite(x) and x > 0 for pair in values for x in pair):
        return None
    ratios = [b / a if better == "higher" else a / b for a, b in values]
    _, b = pairs[0]
    return Comparison(
        side=b.side,
        scenario=b.scenario,
        measure=measure,
        unit=unit,
        better=better,
        baseline_value=statistics.median(a for a, _ in values),
        value=statistics.median(b for _, b in values),
        ratio=statistics.geometric_mean(ratios),
        interval=of_ratio(ratios),
        pairs=len(pairs),
    )
