"""Runs a config at every point of a grid, here or over a Ray cluster, and collects the records; resumes."""

import dataclasses
import datetime
import importlib
import importlib.util
import json
import statistics
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flexjax import config_file, files
from flexjax.progress import Progress
from flexjax.records import Record, append, prepare, read, read_json, to_json, write_json
from flexjax.refusal import Refusal
from flexjax.sweep import EXECUTORS, ExecutorConfig, Outcome, Point, Task, grid, resolve

PROCESSES = "one"  # Its points are jobs of their own; over several hosts Ray runs them (executor.kind).


@dataclasses.dataclass(frozen=True)
class Config:
    base: str  # Config file that every point starts from.
    grid: tuple[tuple[str, tuple[Any, ...]], ...]  # (dotted field, values) an axis; every combination is a point.
    executor: ExecutorConfig = ExecutorConfig()
    show: tuple[str, ...] = ("metrics.output_tokens_per_s", "metrics.ttft_p99_ms")  # Record columns in the table.
    where: tuple[tuple[str, str], ...] = ()  # (column, value): the table takes medians of such rows alone.


def run(config: Config, workdir: Path) -> int:
    """Runs the points that have not ended well in `workdir` yet; 0 when all have in the end, else 1.

    `points/<key>/` holds each point's config file, log and results, `results.parquet` every record of all of them.
    """
    prepare(workdir / "results.parquet")
    console = Console(highlight=False)
    points = _points(config)
    todo = [point for point in points if not _is_finished(workdir, point)]
    console.print(f"{len(points)} points, {len(points) - len(todo)} of them finished before", style="dim")
    by_key = {point.key: point for point in todo}
    tasks = [Task(point.key, point.config_file, _folder(workdir, point)) for point in todo]
    with (
        Progress(len(tasks)) as progress,
        closing(EXECUTORS[config.executor.kind](tasks, config.executor)) as outcomes,
    ):
        for outcome in outcomes:
            _keep(workdir, by_key[outcome.task.key], outcome)
            progress.done(_line(by_key[outcome.task.key], outcome))
    _print_table(console, workdir, points, config)
    progress.close()
    return 0 if all(_is_finished(workdir, point) for point in points) else 1


def _points(config: Config) -> list[Point]:
    """Every point, resolved and checked before the first one runs; equal ones once."""
    launcher, job = config_file.split(config_file.load(config.base))
    found = {}
    for overrides in grid(config.grid):
        name = overrides.get("job", launcher.get("job"))
        if not isinstance(name, str) or importlib.util.find_spec(f"flexjax.jobs.{name}") is None:
            raise Refusal(f"The points of a sweep are jobs of flexjax.jobs; {config.base} gives job={name!r}.")
        if name == "sweep":
            raise Refusal(f"A sweep of sweeps is one grid with more axes; {config.base} is itself a sweep.")
        point = resolve(importlib.import_module(f"flexjax.jobs.{name}").Config, launcher, job, overrides)
        found.setdefault(point.key, point)
    return list(found.values())


def _folder(workdir: Path, point: Point) -> Path:
    return workdir / "points" / point.key


def _ended(workdir: Path, point: Point) -> dict[str, Any] | None:
    """What was noted when the point last ended; None if it has not."""
    return read_json(_folder(workdir, point) / "point.json")


def _is_finished(workdir: Path, point: Point) -> bool:
    """Whether the point has ended well; one that failed or was invalid is tried again."""
    ended = _ended(workdir, point)
    return ended is not None and ended["status"] == 0


def _keep(workdir: Path, point: Point, outcome: Outcome) -> None:
    """Adds the point's records to the sweep's, then notes that it has ended: a crash between repeats the point."""
    file = outcome.task.folder / "record.json"
    rows = read_json(file)
    lost = rows is None and file.is_file()
    rows = rows or []
    mark = {"technique.sweep_point": point.key, "technique.sweep_json": to_json(point.overrides)}
    append(workdir / "results.parquet", [Record.of({**row, **mark}) for row in rows])
    note = {
        "overrides": point.overrides,
        "config": point.config,
        "status": (outcome.status or 1) if lost else outcome.status,
        "seconds": round(outcome.seconds, 2),
        "records": len(rows),
        "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    files.write_text(outcome.task.folder / "point.json", json.dumps(note, indent=1) + "\n")


def _line(point: Point, outcome: Outcome) -> str:
    word = _word(outcome.status)
    log = "" if outcome.status == 0 else f", see {outcome.task.folder / 'log.txt'}"
    return f"{point.key}  {point.label}  {outcome.seconds:.1f} s  {word}{log}"


def _word(status: int | None) -> str:
    return {None: "not run", 0: "valid", 1: "INVALID"}.get(status, f"FAILED ({status})")


def _print_table(console: Console, workdir: Path, points: Sequence[Point], config: Config) -> None:
    records = read(workdir / "results.parquet") if (workdir / "results.parquet").is_dir() else []
    if records:
        write_json(workdir / "record.json", records)
    axes = [name for name, _ in config.grid]
    table = Table(title=f"{config.base} at {len(points)} points", caption=f"Records and logs: {workdir}")
    last = [name.rpartition(".")[2] for name in axes]
    for name, short in zip(axes, last, strict=True):
        table.add_column(short if last.count(short) == 1 else name, overflow="fold")
    for name in ("point", "ended"):
        table.add_column(name)
    for name in config.show:
        table.add_column(name.removeprefix("metrics."), justify="right", overflow="fold")
    for point in points:
        ended = _ended(workdir, point)
        rows = [r.columns for r in records if r.columns.get("technique.sweep_point") == point.key]
        rows = [r for r in rows if r["benchmark.valid"]]
        rows = [r for r in rows if all(str(r.get(column)) == value for column, value in config.where)]
        status = None if ended is None else ended["status"]
        table.add_row(
            *(str(point.overrides[name]) for name in axes),
            point.key,
            _word(status),
            *(_median([r.get(name) for r in rows]) for name in config.show),
            style=None if status == 0 else "red",
        )
    console.print(table)


def _median(values: Sequence[Any]) -> str:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return f"{statistics.median(numbers):,.4g}" if numbers else "–"
