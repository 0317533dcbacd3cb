"""Checks the benchmark's method on this machine: equal sides must not differ, a planted slowdown must be found."""

import contextlib
import dataclasses
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console
from rich.table import Table

from flexjax import files, shipped
from flexjax.bench import (
    Comparison,
    EngineTarget,
    Item,
    Limits,
    Scenario,
    SideConfig,
    SideMaker,
    SideRun,
    Target,
    WorkloadConfig,
    ab,
    build_workload,
)
from flexjax.data import open_tokenizer
from flexjax.engine import EngineConfig
from flexjax.hardware import compile_cache, contention
from flexjax.progress import Progress
from flexjax.records import JobRecord, Value
from flexjax.refusal import Refusal

VERSION = "1"  # Of what the columns mean.
_HELD = 17 / 20  # Of 95 % intervals; with 20 of them fewer than 17 hold 1 once in 63 tries if the method is right.
_WORDS = {True: "holds", False: "FAILS", None: ""}
_OFFLINE, _SERVER = ("Offline", "output_tokens_per_s"), ("Server", "ttft_p50_ms")

Part = Literal["busy", "doubled", "equal", "slowed"]


@dataclasses.dataclass(frozen=True)
class Config:
    model: str = "models/weights/pydoc-7m"
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)  # Of both equal sides.
    stock_batch_size: int = 16  # Of the slower side in the check with twice the queries.
    workload: WorkloadConfig = dataclasses.field(default_factory=WorkloadConfig)
    parts: tuple[Part, ...] = get_args(Part)
    comparisons: int = 20  # Of equal sides, and as many of a side with one that is slowed.
    rounds: int = 3  # Pairs of runs in a comparison of equal sides, Offline and Server.
    slowed_rounds: int = 14  # Pairs of runs in a comparison with a slowed side, Offline alone.
    window_s: float = 5.0  # Of each run.
    queries: int = 459  # Of Server at least; the check with twice the queries runs so many and twice as many.
    of_offline: float = 0.7  # Rate of Server, as a fraction of what a side does offline.
    slowdown: float = 0.05  # Planted by sleeping this share of each turn of the engine.
    seed: int = 0

    def __post_init__(self):
        if not self.parts:
            raise Refusal(f"Nothing to check: set parts to one or more of {', '.join(get_args(Part))}.")
        if self.comparisons < 1 or self.rounds < 2 or self.slowed_rounds < 2:
            raise Refusal("Intervals need two rounds or more, and the check one comparison or more.")
        if self.engine.pipeline_depth != 1:
            raise Refusal(
                "A sleep between two turns slows the engine only where the device does not work meanwhile: set "
                f"engine.pipeline_depth=1; got {self.engine.pipeline_depth}."
            )


@dataclasses.dataclass(frozen=True)
class Finding:
    """One property of the method, what was expected of it and what was seen."""

    what: str
    expected: str
    seen: str
    holds: bool | None  # None is told, not judged.


def run(config: Config, workdir: Path) -> int:
    """Exit status: 0 when every property holds, else 1. Leaves `findings.csv` and `comparisons.csv` in `workdir`."""
    record = JobRecord.begin("check_method", VERSION, config, workdir)
    compile_cache.enable()
    items = build_workload(
        config.workload, open_tokenizer(shipped.model(config.model)), config.engine.max_model_len or 0
    )
    maker = SideMaker(config.model, config.engine, config.workload)
    with contextlib.ExitStack() as stack:
        check = _Check(config, workdir, items)
        for name, side in _SIDES.items():
            target = maker.target(name, dataclasses.replace(side, batch_size=config.stock_batch_size))
            check.sides[name] = maker.start(target, side, None)
            stack.callback(target.stop)
        repeated = sum(part in ("equal", "slowed") for part in config.parts)
        with Progress(len(config.parts) - repeated + repeated * config.comparisons) as progress:
            check.all(progress)
        findings = check.findings()  # Also of a check that was interrupted.
        check.write(findings)
        if findings:
            record.keep(_columns(findings), kind="measured", fault=progress.fault)
        progress.close()
    return 1 if any(finding.holds is False for finding in findings) else 0


_EQUAL = ("one", "other")
_SIDES = {"one": SideConfig("engine"), "other": SideConfig("engine"), "stock": SideConfig("stock")}


class _Check:
    def __init__(self, config: Config, workdir: Path, items: Sequence[Item]):
        self.config, self.workdir, self.items = config, workdir, items
        self.sides: dict[str, ab.Side] = {}
        self.equal: list[list[SideRun]] = []  # Of each comparison of equal sides, its runs.
        self.slowed: list[list[SideRun]] = []
        self.doubled: list[list[SideRun]] = []  # Server with so many queries, and with twice as many.
        self.busy: list[SideRun] = []

    def all(self, progress: Progress) -> None:
        config = self.config
        self.quiet_loop_s = contention.calibration_loop()
        # Long enough that the rate is one that lasts: a window is made of it.
        queries = {name: 256 if name == "stock" else 1024 for name in _SIDES}
        warm = [self._run(n, Scenario("Offline", queries[n], seed=config.seed), -1) for n in 2 * tuple(_SIDES)]
        rates = {name: max(r.metrics.requests_per_s for r in warm if r.side == name) for name in _SIDES}
        rate = min(rates["one"], rates["other"])
        both = [self._offline(rate), self._server(rate, config.queries, config.window_s)]
        if "busy" in config.parts:
            with _busy_core():
                self.busy = self._compare(_EQUAL, both[:1], 2, 0)
            progress.done(f"beside a busy loop: {self._disturbed(self.busy)}")
        if "doubled" in config.parts:
            for times in (1, 2):
                load = self._server(rates["stock"], times * config.queries, 0.0)
                self.doubled.append(self._compare(("stock", "one"), [load], config.rounds, 0))
            ratios = ", then ".join(_said(runs, ("stock", "one")) for runs in self.doubled)
            progress.done(f"twice the queries: {ratios}")
        for index in range(config.comparisons):
            if "equal" in config.parts:
                self.equal.append(self._compare(_EQUAL, both, config.rounds, index))
                progress.done(f"equal sides: {_said(self.equal[-1], _EQUAL)}")
            if "slowed" in config.parts:
                with _slowed(self.sides["other"].target, config.slowdown):
                    self.slowed.append(self._compare(_EQUAL, both[:1], config.slowed_rounds, index))
                progress.done(f"one slowed by {config.slowdown:.0%}: {_said(self.slowed[-1], _EQUAL)}")

    def findings(self) -> list[Finding]:
        """Of the parts that were run, or had begun."""
        found = []
        if self.equal:
            found += [self._equal_sides(*_OFFLINE), self._equal_sides(*_SERVER), self._swapped()]
        if self.slowed:
            found.append(self._planted())
        if len(self.doubled) == 2:
            found.append(self._twice_the_queries())
        if self.busy:
            every = all(run.disturbed for run in self.busy)
            found.append(Finding("busy loop on a core", "every run disturbed", self._disturbed(self.busy), every))
        quiet = [run for runs in (*self.equal, *self.slowed, *self.doubled) for run in runs]
        if quiet:
            found.append(Finding("no such loop", "told, not judged", self._disturbed(quiet), None))
        return found

    def _equal_sides(self, scenario: str, measure: str) -> Finding:
        compared = [_of(runs, _EQUAL, scenario, measure) for runs in self.equal]
        held = sum(1.0 in c.interval for c in compared if c.interval)
        return Finding(
            f"equal sides, {scenario} {measure}, {self.config.rounds} pairs",
            f"95 % interval holds 1 in {math.ceil(_HELD * len(compared))} of {len(compared)}",
            f"{held} of {len(compared)}; {_spread(compared)}",
            held >= _HELD * len(compared),
        )

    def _swapped(self) -> Finding:
        worst = max(abs(math.log(_product(runs))) for runs in self.equal)
        return Finding("sides swapped", "every ratio inverted", f"off by {worst:.1e} at most", worst < 1e-9)

    def _planted(self) -> Finding:
        compared = [_of(runs, _EQUAL, *_OFFLINE) for runs in self.slowed]
        seen = sum(c.interval.high < 1 for c in compared if c.interval)
        return Finding(
            f"one side slowed by {self.config.slowdown:.0%}, Offline, {self.config.slowed_rounds} pairs",
            f"interval below 1 in {math.ceil(_HELD * len(compared))} of {len(compared)}",
            f"{seen} of {len(compared)}; {_spread(compared)}",
            seen >= _HELD * len(compared),
        )

    def _twice_the_queries(self) -> Finding:
        once, twice = (_of(runs, ("stock", "one"), *_SERVER) for runs in self.doubled)
        assert once.interval and twice.interval
        overlap = once.interval.low <= twice.interval.high and twice.interval.low <= once.interval.high
        return Finding(
            f"Server with {2 * self.config.queries} queries in place of {self.config.queries}",
            "intervals of TTFT p50 overlap",
            f"{_ratio(once)} and {_ratio(twice)}",
            overlap,
        )

    @staticmethod
    def _disturbed(runs: Sequence[SideRun]) -> str:
        return f"{sum(bool(run.disturbed) for run in runs)} of {len(runs)} disturbed"

    def write(self, findings: Sequence[Finding]) -> None:
        files.write_csv(
            self.workdir / "findings.csv",
            ("what", "expected", "seen", "holds"),
            [dataclasses.astuple(finding) for finding in findings],
        )
        rows = [
            (kind, index, c.scenario, c.measure, c.baseline_value, c.value, c.ratio, c.interval.low, c.interval.high)
            for kind, comparisons in (("equal", self.equal), ("slowed", self.slowed))
            for index, runs in enumerate(comparisons)
            for c in ab.compare(runs, _EQUAL)
            if c.interval
        ]
        header = ("sides", "index", "scenario", "measure", "one", "other", "ratio", "low", "high")
        files.write_csv(self.workdir / "comparisons.csv", header, rows)
        table = Table(title="The benchmark's method on this machine (measured)", box=None, title_justify="left")
        for name in ("what", "expected", "seen", ""):
            table.add_column(name)
        for finding in findings:
            table.add_row(finding.what, finding.expected, finding.seen, _WORDS[finding.holds])
        Console().print(table)

    def _compare(self, names: Sequence[str], loads: Sequence[ab.Load], rounds: int, index: int) -> list[SideRun]:
        """The first of two sides changes from one comparison to the next."""
        sides = [self.sides[name] for name in names][:: -1 if index % 2 else 1]
        seeded = [
            ab.Load(load.items, {name: dataclasses.replace(s, seed=100 * index) for name, s in load.scenarios.items()})
            for load in loads
        ]
        return [
            self._run(side.target.name, scenario, i) for i, side, scenario, _ in ab.alternate(sides, seeded, rounds)
        ]

    def _run(self, name: str, scenario: Scenario, index: int) -> SideRun:
        logs = self.workdir / "loadgen"
        run = ab.measure(
            self.sides[name],
            scenario,
            self.items,
            round_index=index,
            log_directory=logs,
            quiet_loop_s=self.quiet_loop_s,
        )
        if not run.verdict.valid:
            raise RuntimeError(f"A run of {name} under {scenario.title} is not valid: {'; '.join(run.verdict.reasons)}")
        return run

    def _offline(self, rate_per_s: float) -> ab.Load:
        queries = math.ceil(self.config.window_s * rate_per_s)
        return ab.Load(self.items, dict.fromkeys(_SIDES, Scenario("Offline", queries)))

    def _server(self, rate_per_s: float, queries: int, window_s: float) -> ab.Load:
        rate = self.config.of_offline * rate_per_s
        scenario = Scenario("Server", queries, window_s, rate_per_s=rate, limits=Limits(2000.0, 100.0))
        return ab.Load(self.items, dict.fromkeys(_SIDES, scenario))


def _columns(findings: Sequence[Finding]) -> dict[str, Value]:
    name = lambda what: re.sub("[^a-z0-9]+", "_", what.lower()).strip("_")
    return {f"metrics.{name(f.what)}": f.seen if f.holds is None else f.holds for f in findings}


def _of(runs: Sequence[SideRun], sides: Sequence[str], scenario: str, measure: str) -> Comparison:
    for c in ab.compare(runs, sides):
        if (c.scenario, c.measure) == (scenario, measure):
            return c
    raise RuntimeError(f"{scenario} has no {measure} to compare: it has too few queries, or a side misses its limits.")


def _product(runs: Sequence[SideRun]) -> float:
    """Of the ratio and that with the sides swapped, of the measure where it is furthest from 1."""
    there, back = (ab.compare(runs, sides) for sides in (_EQUAL, _EQUAL[::-1]))
    return max((a.ratio * b.ratio for a, b in zip(there, back, strict=True)), key=lambda x: abs(math.log(x)))


def _said(runs: Sequence[SideRun], sides: Sequence[str]) -> str:
    compared = {(c.scenario, c.measure): c for c in ab.compare(runs, sides)}
    return ", ".join(f"{key[0]} {_ratio(compared[key])}" for key in (_OFFLINE, _SERVER) if key in compared)


def _ratio(c: Comparison) -> str:
    return f"{c.ratio:.3f} ({c.interval.low:.3f}–{c.interval.high:.3f})" if c.interval else f"{c.ratio:.3f}"


def _spread(compared: Sequence[Comparison]) -> str:
    ratios = [c.ratio for c in compared]
    half = statistics.median((c.interval.high - c.interval.low) / 2 for c in compared if c.interval)
    return f"ratios {min(ratios):.3f}–{max(ratios):.3f}; half-width {half:.1%} in the median"


@contextlib.contextmanager
def _slowed(target: Target, share: float) -> Iterator[None]:
    """Every turn of the target's engine takes so much longer, asleep."""
    assert isinstance(target, EngineTarget)
    engine = target.engine
    whole: Callable[[], bool] = engine.step

    def step() -> bool:
        began = time.perf_counter()
        busy = whole()
        if busy:
            time.sleep(share * (time.perf_counter() - began))
        return busy

    engine.step = step
    try:
        yield
    finally:
        del engine.step


@contextlib.contextmanager
def _busy_core() -> Iterator[None]:
    """Another process computes meanwhile."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
