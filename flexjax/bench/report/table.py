"""The one table of a benchmark: every measure of both sides, ratio and spread, in the order it is read.

The terminal, the report and the plots all draw these rows.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping

from flexjax.bench import cost, quality
from flexjax.bench.result import BenchResult, Better, Comparison, Kind, SideRun
from flexjax.hardware.chips import Running

# Measure → in words, and short.
LABELS = {
    "output_tokens_per_s": ("Output throughput", "output"),
    "total_tokens_per_s": ("Input and output throughput", "input + output"),
    "requests_per_s": ("Requests completed", "requests"),
    "goodput_requests_per_s": ("Goodput: requests within the limits", "goodput"),
    "energy_per_token": ("Energy per output token", "energy / token"),
    "cost_per_million_tokens": ("Cost of a million output tokens", "cost / 1M tokens"),
    "peak_memory": ("Peak memory of the process", "peak memory"),
    "batch_mean": ("Sequences in the batch, mean", "batch, mean"),
    "cache_size": ("Cache of keys, values and state, whole", "cache"),
    "cache_use_p99": ("Cache in use, p99", "cache in use, p99"),
    "bits_per_byte": ("Bits per byte of held-out text", "bits per byte"),
    "rouge_l": ("ROUGE-L against the reference's answers", "ROUGE-L"),
    "matching_tokens": ("Tokens equal to the reference's", "equal tokens"),
    "load_s": ("Loading the model", "load"),
    "compile_s": ("Compiling and warming every step", "compile + warm-up"),
}
_STEMS = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Inter-token latency",
    "e2e": "End-to-end latency",
    "queue": "Queue time",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One measure: medians over rounds, and how many times better B is (above 1, B wins).

    None for a side that the measure is not known of; the ratio is None unless both are known and one
    is better.
    """

    section: str  # A scenario's name, or "Start-up", "Quality".
    measure: str
    label: str  # In words.
    short: str  # For a narrow table.
    unit: str
    better: Better | None  # None where neither is: the measure explains, it does not judge.
    kind: Kind
    a: float | None
    b: float | None
    ratio: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    note: str = ""


def labels(measure: str) -> tuple[str, str]:
    """What a reader calls a measure, in words and short: ("Time to first token, p99", "TTFT p99")."""
    if measure in LABELS:
        return LABELS[measure]
    stem, _, rest = measure.partition("_")
    if stem not in _STEMS:
        return measure.replace("_", " "), measure.replace("_", " ")
    point = rest.removesuffix("_ms").replace("p99_9", "p99.9")
    return f"{_STEMS[stem]}, {point}", f"{stem if stem == 'queue' else stem.upper()} {point}"


def rows(result: BenchResult, running: Running) -> tuple[Row, ...]:
    """Every row, section by section: the scenarios in the order they ran, quality, start-up."""
    out: list[Row] = []
    for scenario in dict.fromkeys(run.scenario for run in result.runs):
        out += [_of_comparison(c) for c in result.comparisons if c.scenario == scenario]
        out += _per_run(result, scenario, running)
    return (*out, *_quality(result), *_startup(result))


def _of_comparison(c: Comparison) -> Row:
    return Row(
        c.scenario,
        c.measure,
        *labels(c.measure),
        c.unit,
        c.better,
        "measured",
        c.a,
        c.b,
        c.ratio,
        c.ratio_min,
        c.ratio_max,
    )


def joules_per_token(run: SideRun) -> float | None:
    """Energy for an output token; None for a server elsewhere, whose energy nobody read."""
    if run.energy is None or is_remote(run) or not run.metrics.output_tokens:
        return None
    return run.energy.joules / run.metrics.output_tokens


def is_remote(run: SideRun) -> bool:
    """Whether the side is a server behind a URL: this machine's energy, memory and price are not its."""
    return "url" in run.described


def _per_run(result: BenchResult, scenario: str, running: Running) -> Iterator[Row]:
    """What the comparisons do not hold: energy, cost, memory, batch and cache of each run."""

    def usd(run: SideRun) -> float | None:
        found = cost.of_run(running, run.metrics.duration_s, run.metrics.output_tokens)
        return None if found is None or is_remote(run) else found.usd_per_million_output_tokens

    def memory(run: SideRun) -> float | None:
        return None if run.peak_memory_bytes is None or is_remote(run) else run.peak_memory_bytes / 2**20

    kinds = {run.energy.kind for run in result.runs if run.energy}
    energy_kind: Kind = "measured" if kinds == {"measured"} else "estimated"
    measures: list[tuple[str, str, Better | None, Kind, Callable[[SideRun], float | None]]] = [
        ("energy_per_token", "mJ", "lower", energy_kind, lambda run: _scaled(joules_per_token(run), 1e3)),
        ("cost_per_million_tokens", "USD", "lower", "estimated", usd),
        ("peak_memory", "MiB", "lower", "measured", memory),
        ("batch_mean", "", None, "measured", lambda run: run.metrics.batch_occupancy.mean),
        ("cache_size", "MiB", "lower", "measured", lambda run: _scaled(run.described.get("cache_bytes"), 2**-20)),
        ("cache_use_p99", "%", None, "measured", lambda run: _scaled(run.metrics.cache_use.p99, 100)),
    ]
    runs = [run for run in result.runs if run.scenario == scenario]
    for measure, unit, better, kind, value in measures:
        a, b = ({run.round: _known(value(run)) for run in runs if run.side == side} for side in result.sides)
        row = _compare(scenario, measure, unit, better, kind, a, b)
        if row.a is not None or row.b is not None:
            yield row


def _compare(
    section: str,
    measure: str,
    unit: str,
    better: Better | None,
    kind: Kind,
    a: Mapping[int, float | None],
    b: Mapping[int, float | None],
) -> Row:
    """One row from each side's values by round."""
    pairs = [(x, y) for r in sorted(a) if better and (x := a[r]) and (y := b.get(r))]
    ratios = [y / x if better == "higher" else x / y for x, y in pairs]
    spread = (statistics.median(ratios), min(ratios), max(ratios)) if ratios else (None, None, None)
    medians = _median(a.values()), _median(b.values())
    return Row(section, measure, *labels(measure), unit, better, kind, *medians, *spread)


def _quality(result: BenchResult) -> Iterator[Row]:
    for measure in dict.fromkeys(q.measure for q in result.quality):
        found = {q.side: q for q in result.quality if q.measure == measure}
        one = next(iter(found.values()))
        a, b = (found[side].value if side in found else None for side in result.sides)
        note, ratio = "", None
        if a and b:
            ratio = quality.of_reference(b, a, one.better)
            # Equal tokens explain; one early difference makes them few without being worse text.
            note = "" if measure == "matching_tokens" else quality.mlperf_grade(ratio)
        about = ("Quality", measure, *labels(measure), one.unit, one.better)
        yield Row(*about, "measured", a, b, ratio, ratio, ratio, note)


def _startup(result: BenchResult) -> Iterator[Row]:
    started = {run.side: run.startup for run in result.runs if not is_remote(run)}
    for field in ("load_s", "compile_s"):
        a, b = ({0: getattr(started[side], field)} if side in started else {} for side in result.sides)
        row = _compare("Start-up", field, "s", "lower", "measured", a, b)
        if row.a is not None or row.b is not None:
            yield row


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
    digits = 0 if value == 0 else max(0, min(6, 3 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def times(value: float | None) -> str:
    """A ratio with as many digits as it carries: "4.83×", "12.6×", "1,040×"."""
    if value is None:
        return "–"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}×"


def spread(row: Row) -> str:
    """Smallest and largest ratio over the rounds: "4.6–5.1"; nothing where there was one round."""
    if row.ratio_min is None or row.ratio_max is None or row.ratio_min == row.ratio_max:
        return ""
    return f"{times(row.ratio_min)[:-1]}–{times(row.ratio_max)[:-1]}"
