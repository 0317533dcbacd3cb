"""Two sides under the same load in alternating rounds, and how many times better one is."""

import dataclasses
import datetime
import gc
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flexjax.bench import validity
from flexjax.bench.loadgen import LoadRun, Progress, run_loadgen
from flexjax.bench.metrics import summarise
from flexjax.bench.replay import run_replay
from flexjax.bench.result import Better, Comparison, SideRun, StartUp
from flexjax.bench.scenario import Scenario
from flexjax.bench.target import Prepares, Target
from flexjax.bench.workload import Item
from flexjax.hardware.compile_cache import CompileCounter
from flexjax.hardware.energy import EnergyMeter
from flexjax.hardware.memory import PeakMemory

# What the two sides are compared by: a field of `Metrics.flat()`, its unit, which way is better.
MEASURES: tuple[tuple[str, str, Better], ...] = (
    ("output_tokens_per_s", "tokens/s", "higher"),
    ("total_tokens_per_s", "tokens/s", "higher"),
    ("requests_per_s", "requests/s", "higher"),
    ("goodput_requests_per_s", "requests/s", "higher"),
    ("ttft_p50_ms", "ms", "lower"),
    ("ttft_p99_ms", "ms", "lower"),
    ("tpot_p50_ms", "ms", "lower"),
    ("tpot_p99_ms", "ms", "lower"),
    ("itl_p99_ms", "ms", "lower"),
    ("e2e_p50_ms", "ms", "lower"),
    ("e2e_p99_ms", "ms", "lower"),
    ("queue_p50_ms", "ms", "lower"),
    ("queue_p99_ms", "ms", "lower"),
)


@dataclasses.dataclass(frozen=True)
class Side:
    """A started target, and what its start took."""

    target: Target
    startup: StartUp


def measure(
    side: Side,
    scenario: Scenario,
    items: Sequence[Item],
    *,
    round_index: int,
    log_directory: Path,
    progress: Progress = lambda done, total: None,
) -> SideRun:
    """One scenario on one side. Energy and memory are the process's, the idle side's weights included."""
    target = side.target
    gc.collect()  # Now rather than inside the window.
    if isinstance(target, Prepares):
        target.prepare()
    before = target.stats()
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with CompileCounter() as compiles, PeakMemory() as memory, EnergyMeter() as meter:
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
    return SideRun(
        side=target.name,
        scenario=scenario.name,
        round=round_index,
        metrics=summarise(load.timelines, samples, scenario.limits),
        verdict=verdict,
        timelines=load.timelines,
        samples=samples,
        described=target.describe()
        | {
            "steps": len(samples),
            "host_s": after.host_s - before.host_s,
            "device_s": after.device_s - before.device_s,
        }
        | ({"cache_values_written": written, "cache_values_clipped": clipped} if written else {}),
        startup=side.startup,
        peak_memory_bytes=memory.device_bytes or memory.process_bytes,
        energy=meter.energy,
        loadgen=load.loadgen,
        started_at=started_at,
    )


def _run(scenario: Scenario, items: Sequence[Item], target: Target, log_directory: Path, progress: Progress) -> LoadRun:
    if scenario.name == "replay":
        return run_replay(items, target.submit, progress=progress)
    return run_loadgen(scenario, items, target.submit, log_directory, progress=progress)


def alternate(
    sides: Sequence[Side], scenarios: Sequence[Scenario], rounds: int
) -> Iterator[tuple[int, Side, Scenario]]:
    """(round, side, scenario) in the order A B A B …; a round has its own seed, the same for both sides."""
    for index, side, scenario in itertools.product(range(rounds), sides, scenarios):
        yield index, side, dataclasses.replace(scenario, seed=(scenario.seed + index) % 2**32)


def compare(runs: Sequence[SideRun], sides: tuple[str, str]) -> tuple[Comparison, ...]:
    """Every measure that both sides have, scenario by scenario in the order of the runs."""
    found = []
    for scenario in dict.fromkeys(run.scenario for run in runs):
        values = {
            (run.side, run.round): run.metrics.flat() for run in runs if run.scenario == scenario and run.side in sides
        }
        rounds = sorted({r for side, r in values if side == sides[0]} & {r for side, r in values if side == sides[1]})
        for measure_name, unit, better in MEASURES:
            pairs = [(values[sides[0], r][measure_name], values[sides[1], r][measure_name]) for r in rounds]
            # A closed loop has no queue to speak of, a scenario without limits no goodput: 0 or NaN has no ratio.
            if not pairs or not all(math.isfinite(x) and x > 0 for pair in pairs for x in pair):
                continue
            ratios = [b / a if better == "higher" else a / b for a, b in pairs]
            found.append(
                Comparison(
                    scenario=scenario,
                    measure=measure_name,
                    unit=unit,
                    better=better,
                    a=statistics.median(a for a, _ in pairs),
                    b=statistics.median(b for _, b in pairs),
                    ratio=statistics.median(ratios),
                    ratio_min=min(ratios),
                    ratio_max=max(ratios),
                )
            )
    return tuple(found)
