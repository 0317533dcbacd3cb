"""Checks the values of every kernel on this GPU, and times them against what it copies and multiplies at most."""

import dataclasses
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flexjax import lab
from flexjax.kernels import registry
from flexjax.lab import Apart, Failed, Item, Machine, Outcome, Row, Sheet, TookTooLong
from flexjax.progress import Progress
from flexjax.records import JobRecord, Value, environment
from flexjax.refusal import Refusal

# Of the process that runs the kernels: this one keeps nothing on the GPU, and a new one can begin while the memory of
# the last one is still given back.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

VERSION = "1"  # Of what the columns mean.
PACKAGES = ("jax", "jax-triton", "triton", "nvidia-cudnn-cu13", "tokamax")
PROCESSES = "one"  # The kernels run in processes of their own, to which the GPU must be free.


@dataclasses.dataclass(frozen=True)
class Config:
    ops: tuple[str, ...] = ()  # Folders of flexjax/kernels; empty takes all that have a GPU body.
    # In this order: "goals", times and values of shapes that have a goal; "values", all other shapes that are checked;
    # "others", times and values of other shapes.
    parts: tuple[str, ...] = lab.PARTS
    rounds: int = 7  # Of timing: everything in turn, this often; the median counts.
    round_s: float = 0.05  # Seconds of a round that one body fills.
    limit_s: float = 540.0  # Seconds after which the run ends, whatever is left, and says what is.
    item_s: float = 90.0  # Seconds that one shape may take, compiling included, before its process is stopped.

    def __post_init__(self):
        for name, given, known in (("ops", self.ops, lab.gpu_ops()), ("parts", self.parts, lab.PARTS)):
            if unknown := sorted(set(given) - set(known)):
                raise Refusal(f"{name} can be {', '.join(known)}; got {', '.join(unknown)}.")
        if self.rounds < 1 or min(self.round_s, self.limit_s, self.item_s) <= 0:
            raise Refusal(
                "rounds, round_s, limit_s and item_s must be positive; got "
                f"{self.rounds}, {self.round_s}, {self.limit_s} and {self.item_s}."
            )


def run(config: Config, workdir: Path) -> int:
    console = Console()
    if registry.platform() != "gpu":
        console.print(f"check_gpu needs an NVIDIA GPU; JAX runs on {registry.platform()} here.")
        return 2
    record = JobRecord.begin("check_gpu", VERSION, config, workdir)
    ends = time.monotonic() + config.limit_s
    todo = lab.plan(config.ops or lab.gpu_ops(), config.parts)
    rows: list[Row] = []
    date = record.began.partition("T")[0]
    software = ", ".join(f"{name} {environment.version(name) or 'absent'}" for name in PACKAGES)
    console.print(f"{date}, {software}", markup=False)
    with Sheet(workdir / "gpu.csv", date, software) as sheet, Apart(lab.healthy, ENVIRONMENT) as apart:
        machine = _machine(apart, config, console)
        with Progress(len(todo)) as progress:
            for row in _rows(todo, apart, config, ends, progress):
                rows.append(row)
                sheet.write(row, machine)
                console.print(_line(row, machine), style=_style(row, machine), markup=False, soft_wrap=True)
    _print(console, rows, machine)
    console.print(f"Figures in {workdir / 'gpu.csv'}.", style="dim", markup=False)
    record.keep(_columns(rows, machine), kind="measured", fault=progress.fault)
    progress.close()
    ours = [row for row in rows if row.body == lab.BODY]
    return 1 if any(row.outcome in ("wrong", "failed") for row in ours) else 0


def _columns(rows: Sequence[Row], machine: Machine | None) -> dict[str, Value]:
    """The machine's limits, the time of each body and its shares of them, and the error of each value."""
    columns: dict[str, Value] = {}
    if machine is not None:
        columns["metrics.copy_gb_per_s"] = machine.copies / 1e9
        columns["metrics.matmul_bfloat16_gop_per_s"] = machine.products / 1e9
    for row in rows:
        name = re.sub("[^a-z0-9]+", "_", f"{row.op}_{row.shape}_{row.body}".lower())
        if row.what == "value":
            columns[f"metrics.{name}_error"] = row.error
        else:
            columns[f"metrics.{name}_us"] = None if row.median_s is None else 1e6 * row.median_s
            columns |= {f"metrics.{name}_of_{limit}": share for limit, share in row.shares(machine).items()}
        if row.outcome != "ok":
            columns[f"metrics.{name}_{row.what}_outcome"] = row.outcome
    return columns


def _machine(apart: Apart, config: Config, console: Console) -> Machine | None:
    """None, and a line that says why, where it cannot be measured: times are worth having without their shares."""
    try:
        found = apart.call(config.item_s, lab.machine, config.rounds, config.round_s)
    except Failed as error:
        console.print(f"The GPU's limits could not be measured: {error}.", style="bold red", markup=False)
        return None
    console.print(
        f"{found.device} (measured): copies {found.copies / 1e9:,.0f} GB/s, bfloat16 products "
        f"{found.products / 1e12:,.0f} TFLOP/s",
        markup=False,
    )
    return found


def _rows(todo: Sequence[Item], apart: Apart, config: Config, ends: float, progress: Progress) -> Iterator[Row]:
    """The rows of each item as they come. Where one body ends the process, those beside it are done again, alone."""
    left = deque(todo)
    while left:
        item = left.popleft()
        seconds = ends - time.monotonic()
        if seconds <= 0:
            yield from _instead(item, "left out", f"limit_s, {config.limit_s:g} s, was over")
            continue
        try:
            yield from apart.call(min(config.item_s, seconds), lab.do, item, config.rounds, config.round_s)
        except Failed as error:
            if isinstance(error, TookTooLong) and seconds < config.item_s:
                yield from _instead(item, "left out", f"limit_s, {config.limit_s:g} s, ended it")
            elif item.what == "times" and len(item.bodies) > 1:
                left.extendleft(dataclasses.replace(item, bodies=(body,)) for body in reversed(item.bodies))
                progress.total += len(item.bodies) - 1
                continue
            else:
                yield from _instead(item, "failed", str(error))
        progress.done(f"{item.what} of {item.op} {item.shape}")


def _instead(item: Item, outcome: Outcome, note: str) -> Iterator[Row]:
    for body in item.bodies if item.what == "times" else item.bodies[:1]:
        goal = item.goal if item.what == "times" and body == lab.BODY else None
        yield Row(item.what, item.op, item.shape, body, outcome, note, goal=goal)


def _line(row: Row, machine: Machine | None) -> str:
    name = f"{row.what:5} {row.op} {row.shape} {row.body}"
    if row.outcome not in ("ok", "wrong"):
        return f"{name}: {row.outcome}, {row.note}"
    if row.what == "value":
        return f"{name}: {row.outcome}, off by {row.error:.2g} of the largest value, {row.allowed:g} allowed"
    assert row.median_s is not None
    shares = ", ".join(f"{share:.0%} of {limit}" for limit, share in row.shares(machine).items())
    return f"{name}: {1e6 * row.median_s:,.1f} µs, {shares or 'no limits'}{_verdict(row, machine)}"


def _verdict(row: Row, machine: Machine | None) -> str:
    met = row.met(machine)
    return "" if met is None else f"; {row.goal}: {'met' if met else 'missed'}"


def _style(row: Row, machine: Machine | None) -> str:
    if row.body == lab.BODY and row.outcome in ("wrong", "failed"):
        return "bold red"
    return "yellow" if row.met(machine) is False else ""


def _print(console: Console, rows: Sequence[Row], machine: Machine | None) -> None:
    """The times once more, side by side, and what is to be known of the rest."""
    table = Table(box=None)
    for head in ("op", "shape", "body"):
        table.add_column(head, no_wrap=True)
    for head in ("µs", "of copies", "of products"):
        table.add_column(head, justify="right")
    for head in ("goal", "met"):
        table.add_column(head)
    for row in rows:
        if row.what == "times" and (row.median_s is not None or row.goal is not None):
            shares = row.shares(machine)
            cells = (f"{shares[limit]:.0%}" if limit in shares else "" for limit in ("copies", "products"))
            took = row.outcome if row.median_s is None else f"{1e6 * row.median_s:,.1f}"
            met = {None: "", True: "yes", False: "no"}[row.met(machine)]
            table.add_row(row.op, row.shape, row.body, took, *cells, str(row.goal or ""), met)
    console.print(table)
    count = lambda what, outcome: sum((row.what, row.outcome) == (what, outcome) for row in rows)
    for what, name in (("value", "Values"), ("times", "Times")):
        found = [f"{count(what, outcome)} {outcome}" for outcome in ("ok", "wrong", "refused", "failed", "left out")]
        console.print(f"{name}: {', '.join(found)}.", markup=False)
    goals = [row.met(machine) for row in rows if row.goal is not None]
    console.print(f"Goals: {goals.count(True)} met, {goals.count(False)} missed, {goals.count(None)} not known.")
