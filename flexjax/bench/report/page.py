"""The report of a benchmark: one HTML file that needs nothing else, and its pictures as PNG."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from flexjax import files, kernels
from flexjax.bench import cost
from flexjax.bench.metrics import PERCENTILES
from flexjax.bench.report import plots, table
from flexjax.bench.report.rows import model_name
from flexjax.bench.result import BenchResult, SideRun
from flexjax.bench.validity import limits_missed
from flexjax.hardware import chips
from flexjax.records import Value, environment

_TEMPLATE = Path(__file__).with_name("page.html")

# File name → heading and caption, in the order of the page.
_PICTURES = {
    "ladder": ("The ladder", "Output tokens a second of every side: bars are medians over rounds, dots the rounds."),
    "ratios": (
        "How many times better",
        "Dots are the ratios of the tables; bars are 95 % intervals, cut at ten times the farthest dot. An empty dot "
        "has an interval that holds 1: no difference was shown. Logarithmic axis.",
    ),
    "latency": (
        "Latency distributions",
        "Share of requests that were answered within a time, all rounds together, from the scheduled arrival. "
        "Logarithmic axis: further left is faster.",
    ),
    "timeline": (
        "Timeline of the batch",
        "Above, each request's life in a window of the first round; requests that wait are grey. Below, the whole "
        "round: sequences in the batch and requests waiting, the window shaded.",
    ),
    "cache": ("Cache in use", "Share of the key/value cache that holds live tokens, over the first round."),
}
_TILES = 6


def write_report(workdir: Path, result: BenchResult, columns: Mapping[str, Value] | None = None) -> Path:
    """Writes `report.html` and the pictures as PNG into `workdir`; returns the report's path.

    `columns` describes the machine (`records.environment.collect()`); by default it is asked now.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    machine = environment.collect() if columns is None else columns
    rows = table.rows(result, chips.detect())
    figures = plots.figures(result, rows)
    for name, figure in figures.items():
        files.write_bytes(workdir / f"{name}.png", plots.png(figure))
    svgs = {name: plots.svg(figure) for name, figure in figures.items()}
    path = workdir / "report.html"
    files.write_text(path, render(result, rows, svgs, machine))
    return path


def render(
    result: BenchResult, rows: Sequence[table.Row], svgs: Mapping[str, str], machine: Mapping[str, Value]
) -> str:
    """The page as one string; everything but the pictures is escaped."""
    templates = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    runs = table.measured(result)
    scenarios = list(dict.fromkeys(run.scenario for run in runs))
    titles = dict.fromkeys(run.scenario for run in result.runs)
    last = result.sides[-1]
    headline = [row for row in table.headline(rows) if row.side == last]
    templates.filters |= {"figure": table.figure, "times": table.times, "between": table.between, "groups": _groups}
    return templates.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        baseline=result.baseline,
        last=last,
        sides=result.sides,
        baseline_colour=plots.BASELINE_COLOUR,
        side_colour=plots.SIDE_COLOUR,
        model=model_name(result.config),
        device=_device(machine),
        scenarios=scenarios,
        rounds=len({run.round for run in runs}),
        date=min((run.started_at for run in result.runs), default="")[:16].replace("T", " "),
        valid=result.valid,
        limits_missed=limits_missed,
        reasons=result.reasons,
        disturbed=table.disturbed(result),
        took=table.duration(result.wall_s),
        notes=result.notes,
        tiles=[row for row in headline if row.ratio is not None][:_TILES],
        ladder=table.ladder(result, rows) if len(result.sides) > 2 else None,
        headline=headline,
        tables={side: [row for row in rows if row.side == side] for side in result.sides[1:]},
        pictures=[(name, *text) for name, text in _PICTURES.items() if name in svgs],
        svgs=svgs,
        searches=result.searches,
        counted=runs,
        runs=[run for title in titles for run in result.runs if run.scenario == title],
        percentiles={title: _percentiles(result, title) for title in titles},
        described=list(_described(result)),
        energy="; ".join(dict.fromkeys(_energy(run) for run in result.runs if run.energy and not table.is_remote(run))),
        cost=_cost(result),
        environment=[(_words(name), value) for name, value in machine.items() if _shown(name, value)],
        xla_flags=machine.get("software.xla_flags"),
        config=json.dumps(result.config, indent=1, default=str),
    )


def _groups(rows: Sequence[table.Row]) -> list[tuple[str, list[table.Row]]]:
    """Rows by section, in their order."""
    return [(name, list(found)) for name, found in itertools.groupby(rows, lambda row: row.section)]


def _percentiles(result: BenchResult, scenario: str) -> list[str]:
    """Which percentiles of a scenario are compared: "p50", "p99"."""
    compared = [c.measure for c in result.comparisons if c.scenario == scenario]
    return [name.replace("_", ".") for name in PERCENTILES if any(f"_{name}_ms" in measure for measure in compared)]


def _described(result: BenchResult) -> Iterator[tuple[str, list[Any]]]:
    """What each side says of itself, line by line, and the kernels that it runs."""
    said: dict[str, dict[str, Any]] = {side: {} for side in result.sides}
    for run in result.runs:
        said[run.side] |= run.described
    for run in result.runs:
        said[run.side] |= {
            f"kernel {op}": "; ".join(kernels.in_words(op, body) for body in bodies)
            for op, bodies in run.kernels.items()
        }
    for name in dict.fromkeys(itertools.chain.from_iterable(said.values())):
        yield _words(name), [said[side].get(name, "–") for side in result.sides]


def _energy(run: SideRun) -> str:
    assert run.energy is not None
    return f"{run.side} {run.energy.kind} ({run.energy.meter})"


def _cost(result: BenchResult) -> str:
    """What the prices rest on."""
    found = cost.of_run(chips.detect(), 1.0, 1)
    local = any(not table.is_remote(run) for run in result.runs)
    return f"{found.kind} from {found.basis}" if found and local else ""


def _device(machine: Mapping[str, Value]) -> str:
    if machine.get("system.platform") == "cpu":
        return f"{machine.get('system.chip_units')} cores, {machine.get('system.cpu.model')}"
    return f"{machine.get('system.chip_units')} × {machine.get('system.accelerator.name')}"


def _shown(name: str, value: Value) -> bool:
    return value not in (None, "") and name.split(".")[0] in ("software", "system") and name != "software.xla_flags"


def _words(name: str) -> str:
    return name.removeprefix("software.").removeprefix("system.").replace(".", " ").replace("_", " ")
