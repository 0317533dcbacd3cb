"""Measures two sides under MLPerf rules in alternating rounds, and says how many times better one is."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer

from flexjax import kernels, shipped
from flexjax.bench import (
    BenchResult,
    EngineTarget,
    HttpConfig,
    HttpTarget,
    Item,
    Limits,
    Quality,
    QualityConfig,
    Scenario,
    ScenarioName,
    SideRun,
    StockConfig,
    StockTarget,
    Target,
    WorkloadConfig,
    ab,
    build_workload,
    judge_sides,
)
from flexjax.bench.report import print_table, records_of, write_report
from flexjax.bench.validity import limits_missed
from flexjax.causal_lm import family_of_directory
from flexjax.engine import EngineConfig
from flexjax.hardware import compile_cache
from flexjax.records import append, environment, prepare, to_json, write_json
from flexjax.refusal import Refusal
from flexjax.tokenizer_files import open_tokenizer


@dataclasses.dataclass(frozen=True)
class SideConfig:
    """One side of the table."""

    kind: Literal["stock", "engine", "http"]
    name: str = ""  # Empty takes the kind's own: stock, optimised, or the url.
    dtype: str = "float32"  # Of the stock side.
    batch_size: int = 16  # Of the stock side.
    engine: EngineConfig | None = None  # Of this side alone; None is the job's `engine`.
    http: HttpConfig | None = None  # The server to measure.
    api_key_variable: str = ""  # Environment variable that holds the server's key.

    def __post_init__(self):
        if (self.kind == "http") != (self.http is not None):
            raise Refusal(f"A side needs http.url when its kind is 'http', and only then; got kind={self.kind!r}.")


@dataclasses.dataclass(frozen=True)
class SingleStreamConfig:
    queries: int = 64  # LoadGen needs 64 for a p90, 662 for a p99.
    percentile: float = 0.9


@dataclasses.dataclass(frozen=True)
class OfflineConfig:
    queries: int = 128


@dataclasses.dataclass(frozen=True)
class PoissonConfig:
    queries: int = 459  # LoadGen needs so many within the limits for a p99, 64 for a p90.
    percentile: float = 0.99
    rate_per_s: float | None = None  # None takes it from the calibration.
    of_b: float = 0.8  # Then: this fraction of B's offline rate,
    over_a: float = 1.2  # but at least so many times A's (never over 0.95 of B's).
    ttft_limit_ms: float = 2000.0
    tpot_limit_ms: float = 100.0

    def rate(self, a_per_s: float, b_per_s: float) -> float:
        """Arrivals a second that saturate A and leave B room."""
        return self.rate_per_s or max(self.of_b * b_per_s, min(self.over_a * a_per_s, 0.95 * b_per_s))


@dataclasses.dataclass(frozen=True)
class Config:
    model: str  # Model directory in Hugging Face layout; of an http side at least its tokenizer.json.
    a: SideConfig = SideConfig("stock")
    b: SideConfig = SideConfig("engine")
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)  # Of every engine side without its own.
    workload: WorkloadConfig = dataclasses.field(default_factory=WorkloadConfig)
    scenarios: tuple[ScenarioName, ...] = ("SingleStream", "Offline", "Server", "Interactive")
    rounds: int = 2
    single_stream: SingleStreamConfig = SingleStreamConfig()
    offline: OfflineConfig = OfflineConfig()
    server: PoissonConfig = PoissonConfig()
    interactive: PoissonConfig = PoissonConfig(of_b=0.5, ttft_limit_ms=500.0, tpot_limit_ms=30.0)
    calibration_queries: int = 64  # Offline, once a side, to find the Poisson rates.
    quality: QualityConfig = dataclasses.field(default_factory=QualityConfig)
    seed: int = 0  # Of arrivals and of the order of prompts.

    def __post_init__(self):
        if self.rounds < 1 or not self.scenarios or self.calibration_queries < 1:
            raise Refusal("A benchmark needs at least one round, one scenario and one calibration query.")
        if self.sides[0] == self.sides[1]:
            raise Refusal(f"Both sides are called {self.sides[0]!r}: set a.name or b.name.")
        if "replay" in self.scenarios and not self.workload.trace:
            raise Refusal("The scenario 'replay' needs a trace: set workload.trace to a .csv or .jsonl file.")

    @property
    def sides(self) -> tuple[str, str]:
        return _name(self.a), _name(self.b)


def run(config: Config, workdir: Path) -> int:
    """Runs the benchmark; 0 when every run was valid, 1 otherwise.

    Each run's row is stored as soon as it is over, so that a crash loses at most the one in flight.
    """
    prepare(workdir / "results.parquet")
    compile_cache.enable()
    kernels.forget()  # So that the bodies named are those of this job.
    console = Console(highlight=False)
    tokenizer, max_context = _tokenizer_and_context(config)
    items = build_workload(config.workload, tokenizer, max_context)
    bench = _Bench(config, workdir, console, items)
    with ExitStack() as stack:
        bench.start(stack)
        if bench.judge(tokenizer, max_context) and bench.calibrate():
            bench.measure()
    result = bench.result()
    if result.runs:
        write_report(workdir, result)
        print_table(result, console)
    else:
        for reason in result.reasons:
            console.print(f"INVALID: {reason}", style="bold red", markup=False)
    console.print(f"Records, logs and report.html are in {workdir}", markup=False)
    return 0 if result.valid else 1


class _Bench:
    """The state of one benchmark as it proceeds."""

    def __init__(self, config: Config, workdir: Path, console: Console, items: Sequence[Item]):
        self.config, self.workdir, self.console, self.items = config, workdir, console, items
        self.sides: list[ab.Side] = []
        self.runs: list[SideRun] = []
        self.notes: list[str] = []
        self.reasons: list[str] = []
        self.quality: tuple[Quality, ...] = ()
        self.scenarios: list[Scenario] = []
        self._records = []

    def start(self, stack: ExitStack) -> None:
        for side in (self.config.a, self.config.b):
            target = make_target(self.config, side)
            with self.console.status(f"{target.name}: loading and compiling"):
                startup = target.start()
            stack.callback(target.stop)
            self.sides.append(ab.Side(target, startup))
            self._say(
                f"{target.name:12} ready: loaded in {startup.load_s:.1f} s, compiled in {startup.compile_s:.1f} s"
            )
        used = kernels.bodies_used()
        bodies = to_json({op: [choice.body for choice in choices] for op, choices in used.items()})
        self._machine = environment.collect() | {"software.kernels": bodies}
        for op, choices in used.items():
            self.notes += [f"Kernel {op}: {choice.body}" for choice in choices]
            self.notes += [f"{op}: {name} passed over, {why}" for c in choices for name, why in c.passed_over]

    def judge(self, tokenizer: Tokenizer, max_context: int) -> bool:
        """Quality first: it also warms both sides with real requests. False where one cannot answer them."""
        try:
            with self.console.status("judging the answers"):
                self.quality = judge_sides(
                    [side.target for side in self.sides],
                    self.items,
                    tokenizer,
                    self.config.quality,
                    lambda: StockTarget(self.config.model, _stock_config(self.config, self.config.a), "reference"),
                    max_context,
                )
        except RuntimeError as error:
            self.reasons.append(str(error))
            return False
        for q in self.quality:
            self._say(f"{q.side:12} {q.measure} {q.value:.4g} {q.unit}")
        return True

    def calibrate(self) -> bool:
        """Sets the scenarios, whose Poisson rates may hang on what each side can do; False if that failed."""
        config = self.config
        rates = (float("nan"), float("nan"))
        poisson = [p for name, p in self._poisson().items() if name in config.scenarios]
        if any(p.rate_per_s is None for p in poisson):
            offline = Scenario("Offline", config.calibration_queries, seed=config.seed)
            runs = [self._measure(side, offline, -1, f"calibration-{side.target.name}") for side in self.sides]
            self.reasons += [f"calibration, {r.side}: {reason}" for r in runs for reason in r.verdict.reasons]
            rates = tuple(r.metrics.requests_per_s for r in runs)
            self.notes.append(
                f"Calibration ({offline.queries} requests at once): "
                + ", ".join(f"{r.side} {r.metrics.requests_per_s:.1f} requests/s" for r in runs)
            )
        if self.reasons:
            return False
        self.scenarios = [self._scenario(name, *rates) for name in config.scenarios]
        for scenario in self.scenarios:
            if scenario.poisson and scenario.limits:
                self.notes.append(
                    f"{scenario.name}: {scenario.rate_per_s:.1f} requests/s, limits {scenario.limits.ttft_ms:g} ms to "
                    f"the first token and {scenario.limits.tpot_ms:g} ms a token at p{100 * scenario.percentile:g}"
                )
        for note in self.notes:
            self._say(note)
        return True

    def measure(self) -> None:
        for index, side, scenario in ab.alternate(self.sides, self.scenarios, self.config.rounds):
            run = self._measure(side, scenario, index, f"{index}-{side.target.name}-{scenario.name}")
            self.runs.append(run)
            where = f"{run.side}, {run.scenario}, round {index + 1}"
            self.reasons += [f"{where}: {reason}" for reason in run.verdict.reasons]
            rows = records_of(self.result(runs=(run,)), self._machine)
            append(self.workdir / "results.parquet", rows)
            self._records += rows
            write_json(self.workdir / "record.json", self._records)

    def result(self, runs: Sequence[SideRun] | None = None) -> BenchResult:
        return BenchResult(
            config=_as_json(self.config),
            sides=self.config.sides,
            runs=tuple(self.runs if runs is None else runs),
            comparisons=ab.compare(self.runs, self.config.sides),
            quality=self.quality,
            notes=tuple(self.notes),
            valid=not self.reasons,
            reasons=tuple(self.reasons),
        )

    def _measure(self, side: ab.Side, scenario: Scenario, index: int, log_name: str) -> SideRun:
        label = "calibration" if index < 0 else f"round {index + 1}/{self.config.rounds}"
        items = self.items[: scenario.queries] if scenario.name == "replay" else self.items
        with _progress_bar(self.console, f"{label} · {side.target.name} · {scenario.name}") as progress:
            run = ab.measure(
                side,
                scenario,
                items,
                round_index=index,
                log_directory=self.workdir / "loadgen" / _file_name(log_name),
                progress=progress,
            )
        m = run.metrics
        self.console.print(
            f"{label:11} {run.side:12} {run.scenario:12} {m.completed:5} requests in {m.duration_s:5.1f} s"
            f"  {m.output_tokens_per_s:7,.0f} tokens/s"
            f"  TTFT p99 {m.ttft_ms.p99:8,.1f} ms  TPOT p99 {m.tpot_ms.p99:6,.1f} ms  {_verdict_word(run)}",
            soft_wrap=True,
        )
        return run

    def _poisson(self) -> dict[str, PoissonConfig]:
        return {"Server": self.config.server, "Interactive": self.config.interactive}

    def _scenario(self, name: ScenarioName, a_per_s: float, b_per_s: float) -> Scenario:
        config, seed = self.config, self.config.seed
        if name == "SingleStream":
            return Scenario(name, config.single_stream.queries, percentile=config.single_stream.percentile, seed=seed)
        if name == "Offline":
            return Scenario(name, config.offline.queries, seed=seed)
        if name == "replay":
            limits = Limits(config.server.ttft_limit_ms, config.server.tpot_limit_ms)
            return Scenario(name, len(self.items), limits=limits, seed=seed)
        poisson = self._poisson()[name]
        return Scenario(
            name,
            poisson.queries,
            rate_per_s=poisson.rate(a_per_s, b_per_s),
            percentile=poisson.percentile,
            limits=Limits(poisson.ttft_limit_ms, poisson.tpot_limit_ms),
            seed=seed,
        )

    def _say(self, text: str) -> None:
        self.console.print(text, style="dim", markup=False, soft_wrap=True)


def make_target(config: Config, side: SideConfig) -> Target:
    """The target of one side, not yet started."""
    name = _name(side)
    if side.kind == "stock":
        return StockTarget(config.model, _stock_config(config, side), name)
    if side.kind == "engine":
        return EngineTarget(config.model, side.engine or config.engine, name)
    assert side.http is not None
    key = None
    if side.api_key_variable:
        key = os.environ.get(side.api_key_variable)
        if not key:
            raise Refusal(f"The environment variable {side.api_key_variable}, which holds the server's key, is unset.")
    return HttpTarget(side.http, name, key)


def _name(side: SideConfig) -> str:
    return side.name or {"stock": "stock", "engine": "optimised"}.get(side.kind) or (side.http.url if side.http else "")


def _stock_config(config: Config, side: SideConfig) -> StockConfig:
    """The stock side is compiled for just the workload's longest prompt and answer."""
    return StockConfig(side.dtype, side.batch_size, config.workload.input.high, config.workload.output.high)


def _tokenizer_and_context(config: Config) -> tuple[Tokenizer, int]:
    """The tokenizer of the model directory, and how many tokens a request may have on every side."""
    directory = shipped.model(config.model)
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise Refusal(
            f"The workload is made with the model's tokenizer; {file} does not exist. Set model to a directory in "
            "Hugging Face layout, relative to the current folder or absolute."
        )
    local = [side for side in (config.a, config.b) if side.kind != "http"]
    engines = [side.engine or config.engine for side in local if side.kind == "engine"]
    lengths = [e.max_model_len for e in engines if e.max_model_len]
    if local:  # A server may have a model of a class that is not served here.
        family, hf = family_of_directory(directory)
        lengths.append(family.config_from_hf(hf).max_position)
    longest = config.workload.input.high + config.workload.output.high
    return open_tokenizer(file), min(lengths, default=longest)


def _verdict_word(run: SideRun) -> str:
    if not run.verdict.valid:
        return "[bold red]INVALID[/]"
    missed = limits_missed(run.scenario, run.loadgen)
    return f"[yellow]valid, {missed}[/]" if missed else "[green]valid[/]"


@contextmanager
def _progress_bar(console: Console, label: str) -> Iterator[Any]:
    """Yields progress(done, total). Redrawn twice a second only: the sides need the processor.

    Drawn on a terminal alone; a log has the line of each finished run.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, refresh_per_second=2, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in text)


def _as_json(config: Config) -> dict[str, Any]:
    return {"job": "bench", **dataclasses.asdict(config)}
