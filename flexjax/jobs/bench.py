"""Measures sides against a baseline under MLPerf rules, in pairs of runs, and says how many times better each is."""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer

from flexjax import kernels, shipped
from flexjax.bench import (
    POISSON,
    TOO_FEW,
    BenchResult,
    Item,
    Judgement,
    OfflineConfig,
    PlanConfig,
    PoissonConfig,
    Quality,
    QualityConfig,
    RateSearch,
    Scenario,
    ScenarioName,
    SearchConfig,
    SideConfig,
    SideMaker,
    SideRun,
    SingleStreamConfig,
    StockTarget,
    WorkloadConfig,
    ab,
    build_workload,
    judge_sides,
    largest_rate,
    limits_missed,
    plan,
    under_load,
    with_unknown_ends,
)
from flexjax.bench.report import print_table, records_of, write_report
from flexjax.data import open_tokenizer
from flexjax.engine import EngineConfig, load_vocabulary
from flexjax.families import family_of_directory
from flexjax.hardware import compile_cache, contention
from flexjax.records import append, environment, prepare, write_json
from flexjax.refusal import Refusal

_NOT_COMPARED = -1  # Round of a calibration or of a probe of a search.


def _stock_and_engine() -> dict[str, SideConfig]:
    return {"stock": SideConfig("stock"), "optimised": SideConfig("engine")}


@dataclasses.dataclass(frozen=True)
class Config:
    model: str  # Model directory in Hugging Face layout; of an http side at least its tokenizer.json.
    compare: tuple[str, ...] = ("stock", "optimised")  # Names of sides: the baseline, then those compared with it.
    sides: dict[str, SideConfig] = dataclasses.field(default_factory=_stock_and_engine)  # Name → side.
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)  # Of every engine side without its own.
    workload: WorkloadConfig = dataclasses.field(default_factory=WorkloadConfig)
    scenarios: tuple[ScenarioName, ...] = ("SingleStream", "Offline", "Server")  # Run in rounds.
    first_and_last: tuple[ScenarioName, ...] = ()  # The baseline and the last side alone run these too.
    rounds: int = 4  # Pairs of runs a scenario, in the order A B, B A. Their spread gives the intervals.
    single_stream: SingleStreamConfig = SingleStreamConfig()
    offline: OfflineConfig = OfflineConfig()
    server: PoissonConfig = PoissonConfig()
    interactive: PoissonConfig = PoissonConfig(of_slowest=0.5, ttft_limit_ms=500.0, tpot_limit_ms=30.0)
    overload: float = 0.0  # Server once more at so many times the baseline's offline rate; 0 leaves it out.
    unknown_ends: bool = False  # Offline once more with answers that end where no side can know in advance.
    largest_rate: tuple[ScenarioName, ...] = ()  # Within the limits of Server, Interactive; of the sides that run it.
    search: SearchConfig = SearchConfig()
    calibration_queries: int = 128  # Offline, twice a side; the faster sets window and rate.
    memory: bool = True  # Each side once more in a short process of its own, whose peak memory is read.
    quality: QualityConfig = dataclasses.field(default_factory=QualityConfig)
    seed: int = 0  # Of arrivals and of the order of prompts.

    def __post_init__(self):
        if self.rounds < 1 or not self.scenarios or self.calibration_queries < 1:
            raise Refusal("A benchmark needs at least one round, one scenario and one calibration query.")
        if len(self.compare) < 2 or len(set(self.compare)) < len(self.compare):
            raise Refusal(f"compare names two sides or more, each once, the baseline first; got {self.compare}.")
        unknown = [name for name in self.compare if name not in self.sides]
        if unknown:
            raise Refusal(f"compare names {', '.join(unknown)}, and sides has {', '.join(self.sides)}. Correct one.")
        if "replay" in self.scenarios and not self.workload.trace:
            raise Refusal("The scenario 'replay' needs a trace: set workload.trace to a .csv or .jsonl file.")
        if not set(self.largest_rate) <= set(POISSON):
            raise Refusal(f"A largest rate is that of {' or '.join(POISSON)}; got {', '.join(self.largest_rate)}.")
        if self.overload and self.overload <= 1:
            raise Refusal(f"An overload is more than 1 time the baseline's rate, or 0 for none; got {self.overload}.")
        forced = [self.compare[0], self.compare[-1]]
        if self.unknown_ends and (not self.quality.prompts or any(self.sides[name].kind == "http" for name in forced)):
            raise Refusal(
                "Unknown ends are made by forced tokens, which a server behind a URL does not take, from the "
                "reference's answers (quality.prompts). Set unknown_ends=False, or measure sides in this process."
            )

    @property
    def chosen(self) -> dict[str, SideConfig]:
        """The sides compared, the baseline first."""
        return {name: self.sides[name] for name in self.compare}

    @property
    def plan(self) -> PlanConfig:
        return PlanConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(PlanConfig)})


def run(config: Config, workdir: Path) -> int:
    """Exit status: 0 when the result can be trusted, else 1. A missed limit is a result. Leaves records, LoadGen's
    logs and `report.html` in `workdir`.

    Records are written after each run, so that a crash loses at most the one in flight.
    """
    prepare(workdir / "results.parquet")
    compile_cache.enable()
    console = Console(highlight=False)
    tokenizer, max_context = _tokenizer_and_context(config)
    items = build_workload(config.workload, tokenizer, max_context)
    bench = _Bench(config, workdir, console, items)
    with ExitStack() as stack:
        bench.start(stack)
        if bench.judge(tokenizer, max_context) and bench.calibrate():
            bench.measure()
            bench.search()
            bench.judge_load()
    result = bench.result()
    if result.comparisons or result.searches:
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
        self.maker = SideMaker(config.model, config.engine, config.workload)
        self._width = max(map(len, config.compare))
        self.began = time.perf_counter()
        self.sides: list[ab.Side] = []
        self.runs: list[SideRun] = []
        self.notes: list[str] = []
        self.reasons: list[str] = []
        self.quality: tuple[Quality, ...] = ()
        self.judgement: Judgement | None = None
        self.rates: dict[str, float] = {}  # Side → requests/s offline.
        self.searches: list[RateSearch] = []
        self._records = []

    def start(self, stack: ExitStack) -> None:
        """Memory first: another process could not have a chip that this one holds already."""
        peaks: dict[str, int | None] = dict.fromkeys(self.config.chosen)
        if self.config.memory:
            for name, side in self.config.chosen.items():
                with self.console.status(f"{name}: memory of a process that serves it alone"):
                    peaks[name] = self.maker.peak_memory(side)
        for name, side in self.config.chosen.items():
            target = self.maker.target(name, side)
            with self.console.status(f"{name}: loading and compiling"):
                started = self.maker.start(target, side, peaks[name])
            stack.callback(target.stop)
            self.sides.append(started)
            self.notes += started.passed_over
            startup, peak = started.startup, peaks[name]
            self._say(
                f"{name:{self._width}} ready: loaded in {startup.load_s:.1f} s, compiled in {startup.compile_s:.1f} s"
                + (f"; alone it takes {peak / 2**20:,.0f} MiB" if peak else "")
            )
            for op, bodies in started.kernels.items():
                words = " and ".join(kernels.in_words(op, body) for body in bodies)
                self._say(f"{'':{self._width}} {op}: {words}")
        self._machine = environment.collect()
        self._quiet_loop_s = contention.calibration_loop()

    def judge(self, tokenizer: Tokenizer, max_context: int) -> bool:
        """Quality first: it also warms the sides with real requests. False where one cannot answer them."""
        try:
            with self.console.status("judging the answers"):
                self.judgement = judge_sides(
                    [side.target for side in self.sides],
                    self.items,
                    tokenizer,
                    self.config.quality,
                    lambda: StockTarget(self.config.model, self.maker.stock(SideConfig("stock")), "reference"),
                    max_context=max_context,
                    max_prompt=self.config.workload.input.high,
                    max_output=self.config.workload.output.high,
                )
        except RuntimeError as error:
            self.reasons.append(str(error))
            return False
        self.quality = self.judgement.quality
        self.notes += self.judgement.notes
        for q in self.quality:
            self._say(f"{q.side:{self._width}} {q.measure} {q.value:.4g} {q.unit} ({q.basis})")
        return True

    def judge_load(self) -> None:
        """The answers of every run against the reference's; a side that spoils them under load is not to be trusted."""
        if self.judgement is not None:
            found, reasons = under_load(self.judgement, self.runs)
            self.quality += found
            self.reasons += reasons

    def calibrate(self) -> bool:
        """What each side does offline; False if that failed."""
        scenario = Scenario("Offline", self.config.calibration_queries, seed=self.config.seed, label="calibration")
        load = ab.Load(self.items, {side.target.name: scenario for side in self.sides})
        for index, side, scenario, _ in ab.alternate(self.sides, [load], 2):
            name = side.target.name
            run = self._measure(side, scenario, self.items, _NOT_COMPARED, f"calibration-{index}-{name}")
            self.rates[name] = max(run.metrics.requests_per_s, self.rates.get(name, 0.0))
        self.rates = {name: self.rates[name] for name in self.config.compare}
        self.notes.append(
            f"Calibration ({scenario.queries} requests at once, the faster of two): "
            + ", ".join(f"{name} {rate:.1f} requests/s" for name, rate in self.rates.items())
        )
        return not self.reasons

    def measure(self) -> None:
        unknown = None
        if self.config.unknown_ends:
            unknown = self._unknown_ends()
        loads, notes = plan.loads(self.config.plan, self.rates, self.items, unknown)
        self.notes += notes
        for note in self.notes:
            self._say(note)
        for index, side, scenario, load in ab.alternate(self.sides, loads, self.config.rounds):
            self._measure(side, scenario, load.items, index, f"{index}-{side.target.name}-{scenario.title}")

    def search(self) -> None:
        """The largest rate of each side, from what it did offline."""
        for name in self.config.largest_rate:
            ends = (self.sides[0], self.sides[-1])
            for side in ends if name in self.config.first_and_last else self.sides:
                holds = functools.partial(self._holds, side, name)
                start = self.config.plan.poisson(name).of_slowest * self.rates[side.target.name]
                found = largest_rate(holds, start, self.config.search)
                self.searches.append(RateSearch(side.target.name, name, found.held, found.missed, found.probes))

    def _holds(self, side: ab.Side, name: ScenarioName, rate_per_s: float) -> bool:
        """LoadGen's verdict at that rate; where it wants more queries to judge, once more with twice as many."""
        search = self.config.search
        for times in (1, 2):
            scenario = dataclasses.replace(
                plan.poisson(self.config.plan, name, rate_per_s, f"{name}, search"),
                queries=times * search.queries,
                min_duration_s=search.min_duration_s,
            )
            label = f"search-{name}-{side.target.name}-{rate_per_s:.1f}-{times}"
            run = self._measure(side, scenario, self.items, _NOT_COMPARED, label)
            missed = limits_missed(run.kind, run.loadgen)
            if missed != TOO_FEW:
                break
        return run.verdict.valid and not missed

    def result(self, runs: Sequence[SideRun] | None = None) -> BenchResult:
        return BenchResult(
            config=_as_json(self.config),
            sides=self.config.compare,
            runs=tuple(self.runs if runs is None else runs),
            comparisons=ab.compare(self.runs, self.config.compare),
            quality=self.quality,
            notes=tuple(self.notes),
            valid=not self.reasons,
            reasons=tuple(self.reasons),
            searches=tuple(self.searches),
            wall_s=time.perf_counter() - self.began,
        )

    def _unknown_ends(self) -> tuple[Item, ...]:
        assert self.judgement is not None
        directory = shipped.model(self.config.model)
        family, hf = family_of_directory(directory)
        vocabulary = load_vocabulary(directory, vocab_size=family.config_from_hf(hf).vocab_size)
        if vocabulary is None or not vocabulary.eos_ids:
            raise Refusal(f"Unknown ends need an end-of-text id, and {directory} names none. Set unknown_ends=False.")
        most = self.config.workload.output.high
        return with_unknown_ends(self.items, self.judgement.reference, min(vocabulary.eos_ids), most)

    def _measure(self, side: ab.Side, scenario: Scenario, items: Sequence[Item], index: int, log_name: str) -> SideRun:
        """Runs it, keeps it, writes its record and prints its line."""
        label = scenario.title if index < 0 else f"round {index + 1}/{self.config.rounds}"
        with _progress_bar(self.console, f"{label} · {side.target.name} · {scenario.title}") as progress:
            run = ab.measure(
                side,
                scenario,
                items,
                round_index=index,
                log_directory=self.workdir / "loadgen" / _file_name(log_name),
                progress=progress,
                quiet_loop_s=self._quiet_loop_s,
            )
        self.runs.append(run)
        where = f"{run.side}, {run.scenario}" + (f", round {index + 1}" if index >= 0 else "")
        self.reasons += [f"{where}: {reason}" for reason in run.verdict.reasons]
        rows = records_of(self.result(runs=(run,)), self._machine)
        append(self.workdir / "results.parquet", rows)
        self._records += rows
        write_json(self.workdir / "record.json", self._records)
        m = run.metrics
        self.console.print(
            f"{label:11} {run.side:{self._width}} {run.scenario:12} {m.completed:5} requests in {m.duration_s:5.1f} s"
            f"  {m.output_tokens_per_s:7,.0f} tokens/s  TTFT p50 {m.ttft_ms.p50:8,.1f} ms"
            f"  TPOT p50 {m.tpot_ms.p50:6,.2f} ms  {_verdict_word(run)}",
            soft_wrap=True,
        )
        return run

    def _say(self, text: str) -> None:
        self.console.print(text, style="dim", markup=False, soft_wrap=True)


def _tokenizer_and_context(config: Config) -> tuple[Tokenizer, int]:
    """The tokenizer of the model directory, and how many tokens a request may have on every side."""
    directory = shipped.model(config.model)
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise Refusal(
            f"The workload is made with the model's tokenizer; {file} does not exist. Set model to a directory in "
            "Hugging Face layout, relative to the current folder or absolute."
        )
    local = [side for side in config.chosen.values() if side.kind != "http"]
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
    beside = [limits_missed(run.kind, run.loadgen), "disturbed" if run.disturbed else ""]
    said = ", ".join(["valid", *filter(None, beside)])
    return f"[yellow]{said}[/]" if any(beside) else "[green]valid[/]"


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
