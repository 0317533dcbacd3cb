"""Measures what this machine reaches: matrix products by dtype, memory, collectives, dispatch."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flexjax import files
from flexjax.hardware import chips
from flexjax.lab import Reading, collectives, dispatch, matmuls, measure, memory
from flexjax.progress import Progress
from flexjax.records import JobRecord, environment
from flexjax.refusal import Refusal

VERSION = "1"  # Of what the columns mean.
DTYPES = ("float32", "bfloat16", "int8")  # Where the table of chips has no peak to ask for.
GOAL = 0.8  # Of the table's peak, for a matrix product.
PROCESSES = "one"  # Each counts by its own clock how often it repeats a collective, and all must repeat it as often.


@dataclasses.dataclass(frozen=True)
class Config:
    dtypes: tuple[str, ...] = ()  # Of the matrix products; empty takes those that the chip has a published peak for.
    sizes: tuple[int, ...] = (256, 1024, 2048)  # Rows and columns of the matrices.
    memory_mib: tuple[int, ...] = (16, 64, 256, 1024)  # Read, and copied.
    collectives_kib: tuple[int, ...] = (16, 256, 4096)  # That each device puts in.
    rounds: int = 5  # Everything in turn, this often; the median counts.
    round_s: float = 0.05  # Seconds of a round that one measurement fills.

    def __post_init__(self):
        for name in ("sizes", "memory_mib", "collectives_kib"):
            if any(size < 1 for size in getattr(self, name)):
                raise Refusal(f"{name} must be positive; got {getattr(self, name)}.")
        if self.rounds < 1 or self.round_s <= 0:
            raise Refusal(f"rounds and round_s must be positive; got {self.rounds} and {self.round_s}.")


def run(config: Config, workdir: Path) -> int:
    record = JobRecord.begin("micro", VERSION, config, workdir)
    running = chips.detect()
    dtypes = config.dtypes or tuple(running.chip.peak if running.chip else ()) or DTYPES
    groups = {
        "Matrix products": lambda: matmuls(dtypes, config.sizes),
        "Memory": lambda: memory(config.memory_mib),
        "Collectives": lambda: collectives(config.collectives_kib),
        "Dispatch": dispatch,
    }
    readings: dict[str, list[Reading]] = {}
    with Progress(len(groups)) as progress:
        for name, probes in groups.items():
            readings[name] = list(measure(list(probes()), config.rounds, config.round_s))
            progress.done(f"{name}, {len(readings[name])} measured")
    console = Console()
    kind = environment.cpu()["system.cpu.model"] if running.device_kind == "cpu" else running.device_kind
    console.print(f"{running.units} × {kind} (measured, {config.rounds} rounds)", markup=False)
    for name, group in readings.items():
        if group:
            console.print(_table(name, group, running))
        else:
            console.print(f"{name}: none, there is one device.")
    for line in _short_of_goal(readings["Matrix products"], running):
        console.print(f"• {line}", style="yellow", markup=False)
    _write(workdir / "micro.csv", readings, running)
    record.keep(_columns(readings), kind="measured", fault=progress.fault)
    progress.close()
    return 0


def published(reading: Reading, running: chips.Running) -> float | None:
    """What the table of chips has for that kind of work, a second and on all units; None where it has nothing."""
    chip = running.chip
    if chip is None:
        return None
    if reading.probe.kind in chip.peak:  # One device computes.
        return chip.peak[reading.probe.kind] * 1e12
    if reading.probe.kind in ("read", "copy"):
        return chip.memory_gb_per_s and chip.memory_gb_per_s * 1e9
    return chip.link_gb_per_s and chip.link_gb_per_s * 1e9 / 2  # Out of a chip.


def _table(name: str, group: Sequence[Reading], running: chips.Running) -> Table:
    table = Table(title=name, title_justify="left")
    table.add_column("")
    if name == "Dispatch":
        for head in ("µs", "low–high"):
            table.add_column(head, justify="right")
        for r in group:
            table.add_row(r.probe.name, f"{1e6 * r.median:.1f}", f"{1e6 * r.low:.1f}–{1e6 * r.high:.1f}")
        return table
    unit = "Gop/s" if name == "Matrix products" else "GB/s"
    for head in (unit, "low–high", "of best here", "of table"):
        table.add_column(head, justify="right")
    for r in group:
        peak = published(r, running)
        table.add_row(
            r.probe.name,
            _giga(r.rate),
            f"{_giga(r.probe.work / r.high)}–{_giga(r.probe.work / r.low)}",
            f"{100 * r.rate / best(r, group):.0f} %",
            "" if peak is None else f"{100 * r.rate / peak:.0f} %",
        )
    return table


def _giga(rate: float) -> str:
    return f"{rate / 1e9:,.{1 if rate >= 1e10 else 2}f}"


def best(reading: Reading, group: Sequence[Reading]) -> float:
    """The highest rate of its kind in this run."""
    return max(other.rate for other in group if other.probe.kind == reading.probe.kind)


def _short_of_goal(readings: Sequence[Reading], running: chips.Running) -> list[str]:
    """The dtypes whose best product stays below the goal, in words."""
    lines = []
    for kind in dict.fromkeys(r.probe.kind for r in readings):
        top = max((r for r in readings if r.probe.kind == kind), key=lambda r: r.rate)
        peak = published(top, running)
        if peak is not None and top.rate < GOAL * peak:
            lines.append(f"{kind} products reach {top.rate / peak:.0%} of the table's peak; {GOAL:.0%} is the goal.")
    return lines


def _write(path: Path, readings: dict[str, list[Reading]], running: chips.Running) -> None:
    rows = []
    for name, group in readings.items():
        for r in group:
            rated = r.probe.work > 0
            peak = published(r, running) if rated else None
            shares = [r.rate / best(r, group) if rated else "", "" if peak is None else r.rate / peak]
            rows.append([name, r.probe.name, r.probe.kind, r.probe.work, r.median, r.low, r.high, *shares])
    header = ("group", "name", "kind", "work", "median_s", "low_s", "high_s", "of_best", "of_table")
    files.write_csv(path, header, rows)


def _columns(readings: dict[str, list[Reading]]) -> dict[str, float]:
    columns = {}
    units = {"Matrix products": "gop_per_s", "Dispatch": "us"}
    for name, group in readings.items():
        unit = units.get(name, "gb_per_s")
        for r in group:
            what = re.sub("[^a-z0-9]+", "_", r.probe.name.lower())
            column = f"metrics.{'matmul_' if name == 'Matrix products' else ''}{what}"
            columns[f"{column}_{unit}"] = 1e6 * r.median if name == "Dispatch" else r.rate / 1e9
    return columns
