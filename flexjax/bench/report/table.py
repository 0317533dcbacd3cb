"""The one table of a benchmark: every measure of each side beside the baseline's, in the order it is read.

The terminal, the report and the plots all draw these rows.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from flexjax.bench import cost, interval, quality
from flexjax.bench.interval import Interval
from flexjax.bench.result import BenchResult, Better, Comparison, Kind, Quality, RateSearch, SideRun
from flexjax.bench.scenario import ScenarioName
from flexjax.hardware.chips import Running

# Measure → in words, and short.
LABELS = {
    "output_tokens_per_s": ("Output throughput", "output"),
    "total_tokens_per_s": ("Input and output throughput", "input + output"),
    "requests_per_s": ("Requests completed", "requests"),
    "goodput_requests_per_s": ("Goodput: requests within the limits", "goodput"),
    "energy_per_token": ("Energy per output token", "energy / token"),
    "cost_per_million_tokens": ("Cost of a million output tokens", "cost / 1M tokens"),
    "batch_mean": ("Sequences in the batch, mean", "batch, mean"),
    "cache_use_p99": ("Cache in use, p99", "cache in use, p99"),
    "largest_rate": ("Largest rate within the limits", "largest rate"),
    "bits_per_byte": ("Bits per byte of held-out text", "bits per byte"),
    "rouge_l": ("ROUGE-L against the reference's answers", "ROUGE-L"),
    "rouge_l_under_load": ("ROUGE-L of the answers under load", "ROUGE-L under load"),
    "matching_tokens": ("Tokens equal to the reference's", "equal tokens"),
    "matching_tokens_under_load": ("Tokens equal to the reference's, under load", "equal tokens, load"),
    "load_s": ("Loading the model", "load"),
    "compile_s": ("Compiling and warming every step", "compile + warm-up"),
    "peak_memory": ("Peak memory of a process that serves it alone", "peak memory"),
    "cache_size": ("Cache of keys, values and state, whole", "cache"),
}
_STEMS = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Inter-token latency",
    "gap": "Time between hand-overs",
    "e2e": "End-to-end latency",
    "queue": "Queue time",
}
_LOWER_CASE = ("gap", "queue")  # No acronyms.


@dataclasses.dataclass(frozen=True)
class Row:
    """One measure of one side and of the baseline, and how many times better the side is (above 1, the side wins).

    None for a side that the measure is not known of; the ratio is None unless both are known and one
    is better. Values are medians over rounds, the ratio is the geometric mean of the pairs' own.
    """

    section: str  # A scenario's title, or one of `LARGEST_RATE`, `QUALITY`, `START_UP`.
    load: ScenarioName | None  # LoadGen's scenario; None outside one.
    measure: str
    label: str  # In words.
    short: str  # For a narrow table.
    unit: str
    better: Better | None  # None where neither is: the measure explains, it does not judge.
    kind: Kind
    side: str
    baseline_value: float | None
    value: float | None
    ratio: float | None = None
    interval: Interval | None = None  # Of the ratio; an end may be 0 or infinite where nothing bounds it.
    note: str = ""

    @property
    def differs(self) -> bool:
        """Whether a difference was shown: an interval that does not hold 1."""
        return self.interval is not None and 1.0 not in self.interval


LARGEST_RATE, QUALITY, START_UP = "Largest rate", "Quality", "Start-up and memory"


def labels(measure: str) -> tuple[str, str]:
    """What a reader calls a measure, in words and short: ("Time to first token, p99", "TTFT p99")."""
    if measure in LABELS:
        return LABELS[measure]
    stem, _, rest = measure.partition("_")
    if stem not in _STEMS:
        return measure.replace("_", " "), measure.replace("_", " ")
    point = rest.removesuffix("_ms").replace("p99_9", "p99.9")
    return f"{_STEMS[stem]}, {point}", f"{stem if stem in _LOWER_CASE else stem.upper()} {point}"


def measured(result: BenchResult) -> tuple[SideRun, ...]:
    """The runs that are compared: neither a calibration nor a probe of a search."""
    return tuple(run for run in result.runs if run.round >= 0)


def rows(result: BenchResult, running: Running) -> tuple[Row, ...]:
    """Every row, side by side and in each section by section: the scenarios in the order they ran, and the rest."""
    out: list[Row] = []
    for side in result.sides[1:]:
        kinds: dict[str, ScenarioName] = {r.scenario: r.kind for r in measured(result) if r.side == side}
        for scenario, load in kinds.items():
            compared = [c for c in result.comparisons if (c.side, c.scenario) == (side, scenario)]
            out += [_of_comparison(c, load) for c in compared]
            out += _per_run(result, side, scenario, load, running)
        out += [*_largest_rates(result, side), *_quality(result, side), *_start_up(result, side)]
    return tuple(out)


def _of_comparison(c: Comparison, load: ScenarioName) -> Row:
    about = (c.scenario, load, c.measure, *labels(c.measure), c.unit, c.better, "measured", c.side)
    return Row(*about, c.baseline_value, c.value, c.ratio, c.interval)


def joules_per_token(run: SideRun) -> float | None:
    """Energy for an output token; None for a server elsewhere, whose energy nobody read."""
    if run.energy is None or is_remote(run) or not run.metrics.output_tokens:
        return None
    return run.energy.joules / run.metrics.output_tokens


def is_remote(run: SideRun) -> bool:
    """Whether the side is a server behind a URL: this machine's energy, memory and price are not its."""
    return "url" in run.described


def _per_run(result: BenchResult, side: str, scenario: str, load: ScenarioName, running: Running) -> Iterator[Row]:
    """What the comparisons do not hold: energy, cost, batch and cache of each run."""

    def usd(run: SideRun) -> float | None:
        found = cost.of_run(running, run.metrics.duration_s, run.metrics.output_tokens)
        return None if found is None or is_remote(run) else found.usd_per_million_output_tokens

    kinds = {run.energy.kind for run in result.runs if run.energy}
    energy_kind: Kind = "measured" if kinds == {"measured"} else "estimated"
    measures: list[tuple[str, str, Better | None, Kind, Callable[[SideRun], float | None]]] = [
        ("energy_per_token", "mJ", "lower", energy_kind, lambda run: _scaled(joules_per_token(run), 1e3)),
        ("cost_per_million_tokens", "USD", "lower", "estimated", usd),
        ("batch_mean", "", None, "measured", lambda run: run.metrics.batch_occupancy.mean),
        ("cache_use_p99", "%", None, "measured", lambda run: _scaled(run.metrics.cache_use.p99, 100)),
    ]
    runs = [run for run in measured(result) if run.scenario == scenario]
    for measure, unit, better, kind, value in measures:
        baseline, other = (
            {run.round: _known(value(run)) for run in runs if run.side == name} for name in (result.baseline, side)
        )
        about = (scenario, load, measure, *labels(measure), unit, better, kind, side)
        yield from _paired(Row(*about, None, None), baseline, other)


def _paired(row: Row, baseline: Mapping[int, float | None], other: Mapping[int, float | None]) -> Iterator[Row]:
    """The row, filled from each side's values by round; nothing where neither side has one."""
    pairs = [(x, y) for r in sorted(baseline) if row.better and (x := baseline[r]) and (y := other.get(r))]
    ratios = [quality.of_reference(y, x, row.better) for x, y in pairs if row.better]
    filled = dataclasses.replace(
        row,
        baseline_value=_median(baseline.values()),
        value=_median(other.values()),
        ratio=statistics.geometric_mean(ratios) if ratios else None,
        interval=interval.of_ratio(ratios),
    )
    if filled.baseline_value is not None or filled.value is not None:
        yield filled


def _largest_rates(result: BenchResult, side: str) -> Iterator[Row]:
    """What each side serves within its limits; the ratio lies between the searches' brackets."""
    for scenario in dict.fromkeys(search.scenario for search in result.searches):
        found = {search.side: search for search in result.searches if search.scenario == scenario}
        a, b = found.get(result.baseline), found.get(side)
        if b is None:
            continue
        label, short = labels("largest_rate")
        bracket = _bracket(a, b) if a else None
        yield Row(
            LARGEST_RATE,
            None,
            f"largest_rate_{scenario}",
            f"{label}, {scenario}",
            f"{scenario} {short}",
            "requests/s",
            "higher",
            "measured",
            side,
            a and a.held_per_s,
            b.held_per_s,
            b.held_per_s / a.held_per_s if a and a.held_per_s and b.held_per_s else None,
            bracket,
            "bracket of the search" if bracket else "",
        )


def _bracket(a: RateSearch, b: RateSearch) -> Interval | None:
    """The least and the greatest ratio that both searches allow; None where they allow any."""
    low, high = b.held_per_s / a.missed_per_s, b.missed_per_s / a.held_per_s if a.held_per_s else math.inf
    return None if low == 0 and math.isinf(high) else Interval(low, high)


def _quality(result: BenchResult, side: str) -> Iterator[Row]:
    for measure in dict.fromkeys(q.measure for q in result.quality):
        found = {q.side: q for q in result.quality if q.measure == measure}
        a, b = found.get(result.baseline), found.get(side)
        one = b or a
        if one is None:
            continue
        about = (QUALITY, None, measure, *labels(measure), one.unit, one.better, "measured", side)
        values = (a and a.value, b and b.value)
        ratios = (b.ratio, b.ratio_interval) if b else (None, None)
        yield Row(*about, *values, *ratios, _rests_on(b, result.baseline) if b else one.basis)


def _rests_on(q: Quality, baseline: str) -> str:
    """MLPerf's bar, the value's own interval, and what was read."""
    # Equal tokens explain; one early difference makes them few without being worse text.
    graded = q.ratio is not None and not q.measure.startswith("matching_tokens")
    grade = f"{quality.mlperf_grade(q.ratio)} of {baseline}" if graded and q.ratio is not None else ""
    own = f"{figure(q.interval.low)} to {figure(q.interval.high)}" if q.interval else ""
    return "; ".join(part for part in (grade, own, q.basis) if part)


def _start_up(result: BenchResult, side: str) -> Iterator[Row]:
    """What a side needs before its first request, and the memory that it takes: one value a side."""
    one = {run.side: run for run in result.runs if not is_remote(run)}
    values: list[tuple[str, str, Callable[[SideRun], float | None]]] = [
        ("load_s", "s", lambda run: run.startup.load_s),
        ("compile_s", "s", lambda run: run.startup.compile_s),
        ("peak_memory", "MiB", lambda run: _scaled(run.peak_memory_bytes, 2**-20)),
        ("cache_size", "MiB", lambda run: _scaled(run.described.get("cache_bytes"), 2**-20)),
    ]
    for measure, unit, value in values:
        baseline, other = ({0: value(one[name])} if name in one else {} for name in (result.baseline, side))
        about = (START_UP, None, measure, *labels(measure), unit, "lower", "measured", side)
        yield from _paired(Row(*about, None, None), baseline, other)


# The first rows of a report: where one is read from (the first of these loads that ran, or a section), and which.
_LOADED: tuple[ScenarioName, ...] = ("Server", "Interactive", "replay")
_AT_ONCE: tuple[ScenarioName, ...] = ("Offline", "replay", "Server", "Interactive", "SingleStream")
_HEADLINE: tuple[tuple[str | tuple[ScenarioName, ...], tuple[str, ...]], ...] = (
    (("Offline", "replay"), ("output_tokens_per_s",)),
    (("SingleStream",), ("output_tokens_per_s",)),
    (LARGEST_RATE, ("largest_rate_Server",)),
    (_LOADED, ("ttft_p50_ms",)),
    (_LOADED, ("ttft_p99_ms", "ttft_p90_ms")),
    (_LOADED, ("tpot_p50_ms",)),
    (_LOADED, ("tpot_p99_ms", "tpot_p90_ms")),
    (QUALITY, ("bits_per_byte",)),
    (QUALITY, ("rouge_l_under_load", "rouge_l")),
    (_AT_ONCE, ("energy_per_token",)),
    (_AT_ONCE, ("cost_per_million_tokens",)),
    (START_UP, ("peak_memory",)),
)


def headline(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows to read first, at most 12 for each side, with the scenario in their labels."""
    out: list[Row] = []
    for side in dict.fromkeys(row.side for row in rows):
        own = [row for row in rows if row.side == side]
        for where, measures in _HEADLINE:
            section = where if isinstance(where, str) else _section(own, where)
            found = {row.measure: row for row in own if row.section == section}
            out += [_with_scenario(found[m]) for m in measures if m in found][:1]
    return tuple(out)


def _section(rows: Sequence[Row], loads: Sequence[ScenarioName]) -> str | None:
    """The title of the first of these loads that ran; the plain one before its variants ("Offline, ends unknown")."""
    for load in loads:
        titles = dict.fromkeys(row.section for row in rows if row.load == load)
        if titles:
            return load if load in titles else next(iter(titles))
    return None


def _with_scenario(row: Row) -> Row:
    if row.load is None:
        return row
    return dataclasses.replace(row, label=f"{row.section}: {row.label}", short=f"{row.section} {row.short}")


@dataclasses.dataclass(frozen=True)
class Ladder:
    """All sides one below the other, in the measures that tell them apart; `cells` has a text for each heading."""

    headings: tuple[str, ...]
    rungs: tuple[tuple[str, tuple[str, ...]], ...]  # Side → cells, the baseline first.


# Which of the headline's measures make a ladder, and their headings; a section's title goes where {} stands.
_LADDER: tuple[tuple[str | tuple[ScenarioName, ...], str, str], ...] = (
    (("Offline", "replay"), "output_tokens_per_s", "{}\ntokens/s"),
    (("SingleStream",), "output_tokens_per_s", "1 stream\ntokens/s"),
    (LARGEST_RATE, "largest_rate_Server", "largest\nrate, /s"),
    (_LOADED, "ttft_p50_ms", "TTFT\np50, ms"),
    (_LOADED, "tpot_p50_ms", "TPOT\np50, ms"),
    (QUALITY, "bits_per_byte", "bits/\nbyte"),
)


def ladder(result: BenchResult, rows: Sequence[Row]) -> Ladder:
    """The ladder of every side; the first column is followed by its ratio. Columns without a figure are left out."""
    columns: list[tuple[str, list[str]]] = []
    for where, measure, heading in _LADDER:
        section = where if isinstance(where, str) else _section(rows, where)
        found = {row.side: row for row in rows if (row.section, row.measure) == (section, measure)}
        if not found:
            continue
        baseline = next((row.baseline_value for row in found.values() if row.baseline_value is not None), None)
        values = [baseline, *(found[side].value if side in found else None for side in result.sides[1:])]
        columns.append((heading.format(section), [figure(value) for value in values]))
        if len(columns) == 1:
            others = [found.get(side) for side in result.sides[1:]]
            columns.append(("ratio", ["", *(times(row.ratio) if row else "–" for row in others)]))
            columns.append(("95 %", ["", *(between(row) if row else "" for row in others)]))
    cells = zip(*(cells for _, cells in columns), strict=True)
    return Ladder(tuple(heading for heading, _ in columns), tuple(zip(result.sides, cells, strict=False)))


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def figure(value: float | None) -> str:
    """Four significant digits, thousands set apart; a dash for what is not known."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    digits = 0 if value == 0 else max(0, min(6, 3 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def times(value: float | None) -> str:
    """A ratio with as many digits as it carries: "0.998×", "4.83×", "12.6×", "1,040×"."""
    return "–" if value is None else f"{_digits(value)}×"


def between(row: Row) -> str:
    """The interval of a row's ratio: "4.6–5.1", "≥ 4.6" where nothing bounds it above; empty without one."""
    if row.interval is None:
        return ""
    low, high = row.interval.low, row.interval.high
    if math.isinf(high):
        return f"≥ {_digits(low)}"
    return f"{_digits(low)}–{_digits(high)}" if low > 0 else f"≤ {_digits(high)}"


def _digits(value: float) -> str:
    small = 3 if value < 0.1 or 0.95 <= value < 1.05 else 2  # Near 1, quality is told by its third digit.
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else small}f}"


def disturbed(result: BenchResult) -> str:
    """How many of the compared runs were disturbed and the commonest reason: "3 of 24 runs disturbed: …"."""
    runs = measured(result)
    reasons = [reason for run in runs for reason in run.disturbed]
    share = f"{sum(bool(run.disturbed) for run in runs)} of {len(runs)} runs disturbed"
    if not reasons:
        return share
    # The figures in a reason differ from run to run: told by its words, shown by the first of them.
    words = ["".join(c for c in reason if not c.isdigit()) for reason in reasons]
    commonest = max(dict.fromkeys(words), key=words.count)
    also = "" if len(set(words)) == 1 else "mostly "
    return f"{share}: {also}{reasons[words.index(commonest)]}"


def duration(seconds: float) -> str:
    """In hours, minutes and seconds: "4 min 2 s"; empty for NaN."""
    if math.isnan(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = (f"{hours} h" if hours else "", f"{minutes} min" if minutes or hours else "", f"{rest} s")
    return " ".join(part for part in parts if part)
