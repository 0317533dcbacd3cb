"""The pictures of a benchmark: ladder of the sides, ratios, latency distributions, timeline of the batch, cache.

Drawn for light and dark paper alike: in SVG, text and axes take the colour of the text around them.
Colours are told apart by every kind of eye (after Okabe and Ito), and the sides by line style too.
"""

import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from flexjax.bench.metrics import tpot_ms
from flexjax.bench.report import table
from flexjax.bench.result import BenchResult, RequestTimeline, SideRun

_INK = "#1b1f24"  # Becomes `currentColor` in SVG; nothing else may have this colour.
BASELINE_COLOUR, SIDE_COLOUR = "#d55e00", "#1f83c4"  # The latter is the last side's, to which the others lead.
_BETWEEN = (  # Those between them, in order; from the fifth on they come again.
    ("#009e73", "-."),
    ("#cc79a7", (0, (5, 1))),
    ("#e69f00", (0, (3, 1, 1, 1, 1, 1))),
    ("#56b4e9", (0, (1, 1))),
)
_QUEUE, _PREFILL, _DECODE = "#9aa0a6", "#e69f00", "#009e73"
_POINTS = 400  # Of a curve: more cannot be seen.
_BAR_REACH = 10  # Times the farthest dot: no bar of a ratio goes beyond.
_GANTT_REQUESTS = 40
_GANTT_STRETCH = 5  # The window is at most so many times as long as the faster side needs.

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "flexjax",  # The same result gives the same file.
    "figure.constrained_layout.h_pad": 0.09,  # inches
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _INK
    ),
}

# Stem of the measure → heading, and a request's own value in ms.
_REQUEST_MS: dict[str, tuple[str, Callable[[RequestTimeline], float | None]]] = {
    "ttft": (
        "Time to first token",
        lambda t: None if t.first_token_s is None else 1e3 * (t.first_token_s - t.arrival_s),
    ),
    "tpot": ("Time per output token", lambda t: tpot_ms(t) if t.n_out > 1 else None),
    "e2e": ("End-to-end latency", lambda t: None if t.done_s is None else 1e3 * (t.done_s - t.arrival_s)),
}


def figures(result: BenchResult, rows: Sequence[table.Row]) -> dict[str, Figure]:
    """Every picture that the result has data for, by file name."""
    with mpl.rc_context(_STYLE):
        drawn = {
            "ladder": _ladder(result),
            "ratios": _ratios(result, rows),
            "latency": _latency(result),
            "timeline": _timeline(result),
            "cache": _cache(result),
        }
        found = {name: figure for name, figure in drawn.items() if figure is not None}
        for figure in found.values():
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # Laid out now, once, and not again for every format.
    return found


def png(figure: Figure) -> bytes:
    """The figure on white."""
    out = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(out, format="png", dpi=150, facecolor="white")
    return out.getvalue()


def svg(figure: Figure) -> str:
    """The figure as an `<svg>` element, transparent, as wide as its container, in the text's colour."""
    out = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    element = text[text.index("<svg") :].replace(_INK, "currentColor")
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    head, tail = element.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + tail


def _scenarios(result: BenchResult) -> list[str]:
    return list(dict.fromkeys(run.scenario for run in table.measured(result)))


def _runs(result: BenchResult, scenario: str, side: str) -> list[SideRun]:
    return [run for run in table.measured(result) if (run.scenario, run.side) == (scenario, side)]


def _looks(sides: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Colour and line style of each side."""
    first, *between, last = sides
    return {
        first: (BASELINE_COLOUR, "--"),
        **dict(zip(between, itertools.cycle(_BETWEEN), strict=False)),
        last: (SIDE_COLOUR, "-"),
    }


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _latency(result: BenchResult) -> Figure | None:
    """Cumulative distributions of the three latencies, all rounds together; one row a scenario.

    Two sides have their percentiles in words below each; more of them share one legend.
    """
    scenarios = _scenarios(result)
    two = len(result.sides) == 2
    figure = _figure(10, (2.65 if two else 2.35) * len(scenarios) + (0.3 if two else 0.7))
    grid = figure.subplots(len(scenarios), len(_REQUEST_MS), squeeze=False, sharey=True)
    compared = {(c.scenario, c.measure) for c in result.comparisons}
    for axes, scenario in zip(grid, scenarios, strict=True):
        for ax, (measure, (name, value)) in zip(axes, _REQUEST_MS.items(), strict=True):
            for side, (colour, style) in _looks(result.sides).items():
                timelines = [t for run in _runs(result, scenario, side) for t in run.timelines if t.completed]
                found = np.sort([ms for t in timelines if (ms := value(t)) is not None and ms > 0])
                if not found.size:
                    continue
                # No percentile in words that the comparisons leave out for want of requests.
                points = [p for p in (50, 99) if (scenario, f"{measure}_p{p}_ms") in compared] if two else []
                words = [f"p{p} {table.figure(np.percentile(found, p))}" for p in points]
                label = f"{side}: {', '.join(words)}" if words else side
                kept = np.unique(np.linspace(0, found.size - 1, _POINTS).round().astype(int))
                curve = dict(linestyle=style, color=colour, label=label)
                ax.step(found[kept], (kept + 1) / found.size, where="post", **curve)
            _log_axis(ax)
            ax.set(title=name if ax is not axes[0] else f"{scenario}\n{name}", xlabel="ms", ylim=(0, 1.01))
            if two:  # Below the curves' upper ends there is room, but only above the axis they start from.
                ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.29), ncols=1, handlelength=2.2, borderpad=0)
        axes[0].set_ylabel("fraction of requests")
    if not two:
        _shared_legend(figure)
    return figure


def _shared_legend(figure: Figure) -> None:
    """One legend for all axes, above them: every side that is drawn in any."""
    drawn = [pair for ax in figure.axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    by_name = {name: handle for handle, name in reversed(drawn)}
    names = list(dict.fromkeys(name for _, name in drawn))
    figure.legend([by_name[name] for name in names], names, loc="outside upper right", ncols=3, handlelength=3.5)


def _log_axis(ax: Axes) -> None:
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 1.6 else (1.0, 3.0) if decades < 2.5 else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def _timeline(result: BenchResult) -> Figure | None:
    """One round of one scenario, the baseline and the last side: each request's phases, and the batch."""
    kinds = {run.scenario: run.kind for run in table.measured(result)}
    order = ("Server", "Interactive", "replay", "Offline", "SingleStream")
    scenario = min(kinds, key=lambda title: order.index(kinds[title]), default="")
    runs = [next(iter(_runs(result, scenario, side)), None) for side in (result.baseline, result.sides[-1])]
    shown = [run for run in runs if run and any(t.completed for t in run.timelines)]
    if not shown:
        return None
    windows = [_window(run) for run in shown]
    length = min(max(w[1] - w[0] for w in windows), _GANTT_STRETCH * min(w[1] - w[0] for w in windows))
    figure = _figure(10, 6.2)
    grid = figure.subplots(2, len(shown), squeeze=False, height_ratios=(3, 1.3), sharex="row", sharey="row")
    for column, (run, (start, end, requests)) in enumerate(zip(shown, windows, strict=True)):
        _gantt(grid[0, column], requests, start, length)
        grid[0, column].set(title=f"{run.side} · {scenario}\n{len(requests)} requests from {start:.1f} s on")
        _batch(grid[1, column], run)
        grid[1, column].axvspan(start, min(start + length, end), color=_INK, alpha=0.10, linewidth=0)
    grid[0, 0].set_ylabel("request, by arrival")
    grid[1, 0].set_ylabel("sequences")
    phases = (("queue", _QUEUE), ("prefill", _PREFILL), ("decode", _DECODE))
    names = [Patch(color=colour, label=name) for name, colour in phases]
    figure.legend(handles=names, loc="outside upper right", ncols=len(names))
    return figure


def _window(run: SideRun) -> tuple[float, float, list[RequestTimeline]]:
    """Start, end and requests of the window: some from the middle of the run on, in order of arrival."""
    done = sorted((t for t in run.timelines if t.completed), key=lambda t: t.arrival_s)
    first = max(0, (len(done) - _GANTT_REQUESTS) // 2)
    chosen = done[first : first + _GANTT_REQUESTS]
    return chosen[0].arrival_s, max(t.done_s or 0.0 for t in chosen), chosen


def _gantt(ax: Axes, requests: Sequence[RequestTimeline], start: float, length: float) -> None:
    for y, t in enumerate(requests):
        # A target that does not tell when it scheduled: queue and prefill are one wait.
        edges = [t.arrival_s, t.scheduled_s or t.arrival_s, t.first_token_s or t.arrival_s, t.done_s or t.arrival_s]
        spans = [(a - start, b - a) for a, b in itertools.pairwise(edges)]
        ax.broken_barh(spans, (y - 0.4, 0.8), facecolors=(_QUEUE, _PREFILL, _DECODE), linewidth=0)
    ax.set(xlim=(0, length), ylim=(len(requests) - 0.5, -0.5), xlabel="seconds in the window")
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.grid(axis="y", visible=False)


def _batch(ax: Axes, run: SideRun) -> None:
    filled: dict[str, Any] = dict(step="post", color=_DECODE, alpha=0.8, linewidth=0)
    if run.samples:
        times = [s.time_s for s in run.samples]
        ax.fill_between(*_peaks(times, [s.running for s in run.samples]), label="in the batch", **filled)
        waiting = _peaks(times, [s.waiting for s in run.samples])
        ax.step(*waiting, where="post", color=_INK, linewidth=1.2, label="waiting")
    else:
        ax.fill_between(*_peaks(*_in_flight(run.timelines)), label="in flight", **filled)
    ax.set(xlabel="seconds in the run", xlim=(0, None), ylim=(0, None))
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)


def _peaks(times: Sequence[float], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """A long series with fewer points: the highest of each stretch."""
    stretches = np.array_split(np.asarray(values), min(_POINTS, len(values)))
    starts = np.cumsum([0, *map(len, stretches[:-1])])
    return np.asarray(times)[starts], np.array([stretch.max() for stretch in stretches])


def _in_flight(timelines: Sequence[RequestTimeline]) -> tuple[list[float], list[int]]:
    """How many requests have arrived and are not done, over time."""
    changes = sorted(
        [(t.arrival_s, 1) for t in timelines] + [(t.done_s, -1) for t in timelines if t.done_s is not None]
    )
    return [time for time, _ in changes], list(itertools.accumulate(change for _, change in changes))


def _cache(result: BenchResult) -> Figure | None:
    """Share of the cache in use over one round of each scenario, on the baseline and the last side: more would hide."""
    scenarios = [
        s for s in _scenarios(result) if any(run.samples for run in table.measured(result) if run.scenario == s)
    ]
    if not scenarios:
        return None
    columns = min(2, len(scenarios))
    figure = _figure(10, 2.3 * math.ceil(len(scenarios) / columns) + 0.4)
    axes = figure.subplots(math.ceil(len(scenarios) / columns), columns, squeeze=False).flat
    for scenario, ax in zip(scenarios, axes, strict=False):  # In this order no axes are taken and left.
        for side, (colour, style) in _looks((result.baseline, result.sides[-1])).items():
            run = next(iter(_runs(result, scenario, side)), None)
            if run and run.samples:
                used = _peaks([s.time_s for s in run.samples], [100 * s.used_pages for s in run.samples])
                line = dict(linestyle=style, color=colour, drawstyle="steps-post", linewidth=1.4)
                ax.plot(*used, label=side, **line)
        ax.set(title=scenario, xlabel="seconds in the run", ylabel="% of the cache", xlim=(0, None), ylim=(0, None))
    for ax in itertools.islice(axes, 0, None):  # Whatever the last row has too many.
        ax.set_visible(False)
    _shared_legend(figure)
    return figure


_HEADLINES = (
    "output_tokens_per_s",
    "goodput_requests_per_s",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "tpot_p50_ms",
    "tpot_p99_ms",
    "e2e_p99_ms",
    "energy_per_token",
    "cost_per_million_tokens",
)


def _ratios(result: BenchResult, rows: Sequence[table.Row]) -> Figure | None:
    """How many times better the last side is in the measures that decide, with the ratios' intervals."""
    side = result.sides[-1]
    groups = dict(_headlines(result, [row for row in rows if row.side == side]))
    if not groups:
        return None
    columns = min(2, len(groups))
    lines = math.ceil(len(groups) / columns)
    height = 0.24 * max(map(len, groups.values())) + 0.75
    figure = _figure(10, height * lines + 0.3)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True).flat
    ratios = [1.0, *(ratio for found in groups.values() for _, ratio, _ in found)]
    # Two rounds give bars over many decades: they are cut where they would hide the dots.
    lowest, highest = min(ratios) / _BAR_REACH, max(ratios) * _BAR_REACH
    ends = list(ratios)
    for (scenario, found), ax in zip(groups.items(), axes, strict=False):
        for y, (row, ratio, bounds) in enumerate(found):
            low, high = max(bounds[0], lowest), min(bounds[1], highest)
            ends += [low, high]
            colour = SIDE_COLOUR if ratio >= 1 else BASELINE_COLOUR
            ax.plot([low, high], [y, y], color=colour, linewidth=4, alpha=0.35, solid_capstyle="round")
            face = "none" if row.interval and not row.differs else colour
            ax.plot([ratio], [y], "o", color=colour, markerfacecolor=face, markersize=5)
            text = table.times(ratio) + (" est." if row.kind == "estimated" else "")
            ax.annotate(text, (high, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8)
        ax.axvline(1, color=_INK, linewidth=1)
        ax.set_yticks(range(len(found)), [row.short for row, *_ in found])
        ax.set(title=scenario, ylim=(len(found) - 0.5, -0.5))
        ax.grid(axis="y", visible=False)
    for ax in axes:
        ax.set_visible(False)
    _ratio_axis(figure.axes[: len(groups)], min(ends), max(ends))
    figure.supxlabel(
        f"times better: {side} over {result.baseline} (right of 1: {side} wins); bars are 95 % intervals", fontsize=9
    )
    return figure


_Compared = tuple[table.Row, float, tuple[float, float]]  # Row, ratio, ends of its bar.


def _headlines(result: BenchResult, rows: Sequence[table.Row]) -> Iterator[tuple[str, list[_Compared]]]:
    for scenario in _scenarios(result):
        known = {row.measure: row for row in rows if row.section == scenario}
        found = [known[measure] for measure in _HEADLINES if measure in known]
        compared = [
            (row, row.ratio, (row.interval.low, row.interval.high) if row.interval else (row.ratio, row.ratio))
            for row in found
            if row.ratio is not None
        ]
        if compared:
            yield scenario, compared


def _ratio_axis(axes: Sequence[Axes], low: float, high: float) -> None:
    for ax in axes:
        ax.set_xscale("log")
        ax.set_xlim(low / 1.3, high**1.25 * 2)  # Room for the figure to the right of the last dot.
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 30 else (1.0,), numticks=10))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}×"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.tick_params(labelbottom=True)


def _ladder(result: BenchResult) -> Figure | None:
    """Output tokens a second of every side, where there are more than two: medians, and each round as a dot.

    No interval: rounds share the machine's drift, so that only ratios within a round can be told apart.
    """
    panels = [s for s in _scenarios(result) if s in ("Offline", "SingleStream", "replay")]
    if len(result.sides) < 3 or not panels:
        return None
    figure = _figure(10, 0.32 * len(result.sides) + 0.9)
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, scenario in zip(grid, panels, strict=True):
        furthest = 0.0
        for y, (side, (colour, _)) in enumerate(_looks(result.sides).items()):
            rates = [run.metrics.output_tokens_per_s for run in _runs(result, scenario, side)]
            if not rates or not np.isfinite(rates).all():
                continue
            median, end = float(np.median(rates)), max(rates)
            ax.barh(y, median, height=0.62, color=colour, alpha=0.6)
            ax.plot(rates, [y] * len(rates), "o", color=_INK, markersize=2.5)
            text = dict(xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
            ax.annotate(table.figure(median), (end, y), **text)
            furthest = max(furthest, end)
        ax.set(title=scenario, xlabel="output tokens/s", xlim=(0, 1.2 * furthest or 1))
        ax.set_yticks(range(len(result.sides)), result.sides)
        ax.set_ylim(len(result.sides) - 0.5, -0.5)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))
        ax.grid(axis="y", visible=False)
    return figure
