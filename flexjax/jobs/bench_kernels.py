"""Times every body of every op against the op's own limit: its bytes or its operations, as this machine does them."""

import dataclasses
import importlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flexjax import files, kernels
from flexjax.hardware import chips
from flexjax.kernels import Case, can_serve
from flexjax.lab import Limits, Loop, Probe, Reading, limits, measure
from flexjax.progress import Progress
from flexjax.records import JobRecord, environment
from flexjax.refusal import Refusal

VERSION = "2"  # Of what the columns mean: the limit is the best of XLA's and our own rates.
HOME = Path(kernels.__file__).parent


@dataclasses.dataclass(frozen=True)
class Config:
    ops: tuple[str, ...] = ()  # Folders of flexjax/kernels; empty takes all that have something to time.
    shapes: str = ""  # A part of the names of the shapes to time.
    rounds: int = 7  # The bodies of a shape in turn, this often; the median counts.
    round_s: float = 0.03  # Seconds of a round that one body fills.
    most_s: float = 0.025  # Seconds of a step at the machine's limit; shapes that need more are left out, and told.

    def __post_init__(self):
        unknown = [op for op in self.ops if op not in timed_ops()]
        if unknown:
            raise Refusal(f"ops can be {', '.join(timed_ops())}; got {', '.join(unknown)}.")
        if self.rounds < 1 or min(self.round_s, self.most_s) <= 0:
            raise Refusal(
                f"rounds, round_s and most_s must be positive; got {self.rounds}, {self.round_s} and {self.most_s}."
            )


@dataclasses.dataclass(frozen=True)
class Result:
    case: Case
    reading: Reading  # Of a call.
    limit_s: float
    bound: str  # "bytes" or "products".

    @classmethod
    def of(cls, case: Case, reading: Reading, machine: Limits) -> "Result":
        seconds, bound = _least(case, machine)
        return cls(case, reading, seconds / case.calls, bound)

    @property
    def of_limit(self) -> float:
        return self.limit_s / self.reading.median


def timed_ops() -> list[str]:
    return sorted(path.parent.name for path in HOME.glob("*/bench.py"))


def run(config: Config, workdir: Path) -> int:
    record = JobRecord.begin("kernels", VERSION, config, workdir)
    console = Console()
    cases = [case for op in config.ops or timed_ops() for case in _cases(op) if config.shapes in case.shape]
    if not cases:
        raise Refusal(f"No shape of {', '.join(config.ops or timed_ops())} has {config.shapes!r} in its name.")
    dtypes = sorted({case.dtype for case in cases})
    print("measuring what the machine reads and multiplies", flush=True)
    before = limits(dtypes, config.rounds, config.round_s)
    large = {(case.op, case.shape) for case in cases if _least(case, before)[0] > config.most_s}
    cases = [case for case in cases if (case.op, case.shape) not in large]
    groups = [list(group) for _, group in itertools.groupby(cases, key=lambda case: (case.op, case.shape))]
    readings: list[tuple[Case, Reading]] = []
    refused: dict[tuple[str, str, str], int] = {}
    machine = before
    with Progress(len(groups) + 1) as progress:
        for group in groups:
            loops: list[tuple[Case, Loop]] = []
            for case in group:
                arguments = case.make()
                reason = can_serve(case.step, arguments)
                if reason is None:
                    loops.append((case, Loop(case.step, *arguments)))
                else:
                    refused[case.op, case.body, reason] = refused.get((case.op, case.body, reason), 0) + 1
            timed = list(_time(loops, config))
            readings += timed
            figures = ", ".join(f"{case.body} {1e6 * reading.median:,.1f} µs" for case, reading in timed)
            progress.done(f"{group[0].op} {group[0].shape}: {figures or 'no body serves it'}")
        machine |= limits(dtypes, config.rounds, config.round_s)
        progress.done("the machine's limits once more")
    results = [Result.of(case, reading, machine) for case, reading in readings]
    _print(console, results, machine)
    for (op, body, reason), count in refused.items():
        console.print(f"• {op}: {body} does not serve {count} of the shapes: {reason}.", markup=False)
    for op, group in itertools.groupby(sorted(large), key=lambda shape: shape[0]):
        names = ", ".join(shape for _, shape in group)
        console.print(f"• {op}: too large to be timed here (over {config.most_s:g} s a step): {names}.", markup=False)
    _write(workdir / "kernels.csv", results)
    record.keep(_columns(results, machine), kind="measured", fault=progress.fault)
    progress.close()
    return 0


def _cases(op: str) -> Iterator[Case]:
    return importlib.import_module(f"flexjax.kernels.{op}.bench").cases()


def _least(case: Case, machine: Limits) -> tuple[float, str]:
    """Seconds of a step at the machine's limit, and what bounds it."""
    return machine.seconds(case.calls * case.moved_bytes, case.calls * case.operations, case.dtype)


def _time(loops: Sequence[tuple[Case, Loop]], config: Config) -> Iterator[tuple[Case, Reading]]:
    probes = [Probe(case.body, case.op, 0, loop) for case, loop in loops]
    for (case, _), r in zip(loops, measure(probes, config.rounds, config.round_s), strict=True):
        yield case, Reading(r.probe, r.median / case.calls, r.low / case.calls, r.high / case.calls)


def _print(console: Console, results: Sequence[Result], machine: Limits) -> None:
    running = chips.detect()
    kind = environment.cpu()["system.cpu.model"] if running.device_kind == "cpu" else running.device_kind
    console.print(f"{running.units} × {kind} (measured)", markup=False)
    reads = ", ".join(f"{rate / 1e9:.1f} of {size} MiB" for size, rate in machine.read.items())
    console.print(f"Reads GB/s: {reads}", markup=False)
    console.print("Gop/s: " + ", ".join(f"{rate / 1e9:,.0f} {dtype}" for dtype, rate in machine.products.items()))
    for op, group in itertools.groupby(results, key=lambda result: result.case.op):
        table = Table(title=op, title_justify="left", box=None)
        for head in ("shape", "body"):
            table.add_column(head, no_wrap=True)
        for head in ("µs", "±", "limit", "of it"):
            table.add_column(head, justify="right")
        table.add_column("by")
        for r in group:
            half = (r.reading.high - r.reading.low) / 2 / r.reading.median
            cells = (f"{1e6 * r.reading.median:,.1f}", f"{100 * half:.0f} %", f"{1e6 * r.limit_s:,.1f}")
            table.add_row(r.case.shape, r.case.body, *cells, f"{100 * r.of_limit:.0f} %", r.bound)
        console.print(table)


def _write(path: Path, results: Sequence[Result]) -> None:
    names = ("op", "shape", "body", "median_s", "low_s", "high_s", "moved_bytes", "operations", "limit_s", "bound")
    rows = []
    for r in results:
        case, t = r.case, r.reading
        row = (case.op, case.shape, case.body, t.median, t.low, t.high, case.moved_bytes, case.operations)
        rows.append((*row, r.limit_s, r.bound))
    files.write_csv(path, names, rows)


def _columns(results: Sequence[Result], machine: Limits) -> dict[str, float]:
    columns: dict[str, float] = {f"metrics.read_{mib}_mib_gb_per_s": rate / 1e9 for mib, rate in machine.read.items()}
    columns |= {f"metrics.matmul_{dtype}_gop_per_s": rate / 1e9 for dtype, rate in machine.products.items()}
    for r in results:
        name = re.sub("[^a-z0-9]+", "_", f"{r.case.op}_{r.case.shape}_{r.case.body}".lower())
        columns[f"metrics.{name}_us"] = 1e6 * r.reading.median
        columns[f"metrics.{name}_of_limit"] = r.of_limit
    return columns
