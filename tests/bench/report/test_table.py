import dataclasses
import math
import statistics

import pytest

from flexjax.bench import interval
from flexjax.bench.interval import Interval
from flexjax.bench.report import table
from flexjax.bench.result import RateSearch
from flexjax.hardware import chips

CPU = chips.Running("cpu", 2, chips.find("cpu"))


def row(result, section, measure, running=CPU):
    """Of the last side."""
    found = [r for r in table.rows(result, running) if r.side == result.sides[-1]]
    return next(r for r in found if (r.section, r.measure) == (section, measure))


def test_every_comparison_has_its_row_in_order(ladder):
    rows = table.rows(ladder, CPU)
    found = [(r.side, r.section, r.measure) for r in rows]
    compared = [(c.side, c.scenario, c.measure) for c in ladder.comparisons]
    assert [key for key in found if key in compared] == compared
    assert len(found) == len(set(found))
    assert list(dict.fromkeys(side for side, *_ in found)) == list(ladder.sides[1:])
    sections = list(dict.fromkeys(section for side, section, _ in found if side == ladder.sides[-1]))
    assert sections == ["SingleStream", "Offline", "Server", table.LARGEST_RATE, table.QUALITY, table.START_UP]


def test_energy_and_cost_are_compared_by_pairs_and_called_estimates(result):
    runs = [r for r in table.measured(result) if r.scenario == "Server"]
    joules = {
        side: [r.energy.joules / r.metrics.output_tokens for r in sorted(runs, key=lambda r: r.round) if r.side == side]
        for side in result.sides
    }
    energy = row(result, "Server", "energy_per_token")
    assert energy.baseline_value == pytest.approx(1e3 * statistics.median(joules["stock"]))
    ratios = [a / b for a, b in zip(joules["stock"], joules["optimised"], strict=True)]
    expected = interval.of_ratio(ratios)
    assert energy.ratio == pytest.approx(math.prod(ratios) ** (1 / len(ratios)))
    assert energy.interval is not None and expected is not None
    assert (energy.interval.low, energy.interval.high) == pytest.approx((expected.low, expected.high))
    assert energy.kind == "estimated" and row(result, "Server", "cost_per_million_tokens").kind == "estimated"


def test_cost_follows_throughput_on_the_same_hardware(result):
    """Same price, same tokens and time: the ratio is that of the throughputs."""
    tokens = row(result, "Offline", "output_tokens_per_s")
    assert row(result, "Offline", "cost_per_million_tokens").ratio == pytest.approx(tokens.ratio)


def test_a_probe_is_in_no_row(result):
    """Its tokens would change the median energy, and its title would be a section."""
    without = dataclasses.replace(result, runs=table.measured(result))
    assert len(without.runs) < len(result.runs)
    assert table.rows(without, CPU) == table.rows(result, CPU)


def test_what_a_side_needs_stands_once(result):
    memory = row(result, table.START_UP, "peak_memory")
    assert (memory.baseline_value, memory.value, memory.ratio, memory.interval) == (600.0, 300.0, 2.0, None)
    assert memory.label == "Peak memory of a process that serves it alone"


@pytest.mark.parametrize(
    ("baseline", "side", "ratio", "bracket", "text"),
    [
        ((8.0, 10.0), (40.0, 44.0), 5.0, Interval(4.0, 5.5), "4.00–5.50"),
        ((0.0, 2.0), (40.0, 44.0), None, Interval(20.0, math.inf), "≥ 20.0"),
        ((8.0, 10.0), (40.0, math.inf), 5.0, Interval(4.0, math.inf), "≥ 4.00"),
        ((8.0, math.inf), (4.0, 6.0), 0.5, Interval(0.0, 0.75), "≤ 0.75"),
        ((0.0, 2.0), (0.0, 2.0), None, None, ""),
    ],
)
def test_the_ratio_of_largest_rates_lies_between_the_brackets(small, baseline, side, ratio, bracket, text):
    searches = (RateSearch("stock", "Server", *baseline, ()), RateSearch("optimised", "Server", *side, ()))
    found = row(dataclasses.replace(small, searches=searches), table.LARGEST_RATE, "largest_rate_Server")
    assert (found.baseline_value, found.value, found.ratio) == (baseline[0], side[0], ratio)
    assert found.interval == bracket and table.between(found) == text


def test_the_headline_is_twelve_rows_in_the_order_they_are_read(result, ladder):
    short = [r.short for r in table.headline(table.rows(result, CPU))]
    assert short == [
        "Offline output",
        "SingleStream output",
        "Server largest rate",
        "Server TTFT p50",
        "Server TTFT p99",
        "Server TPOT p50",
        "Server TPOT p99",
        "bits per byte",
        "ROUGE-L",
        "Offline energy / token",
        "Offline cost / 1M tokens",
        "peak memory",
    ]
    several = table.headline(table.rows(ladder, CPU))
    assert [r.side for r in several] == [side for side in ladder.sides[1:] for _ in range(12)]


def test_the_headline_prefers_the_plain_scenario_and_the_answers_under_load(result):
    """A variant that ran first does not stand for its scenario; what was not compared is not made up."""
    loaded = [dataclasses.replace(q, measure="rouge_l_under_load", value=97.0) for q in result.quality]
    loaded = [q for q in loaded if q.unit == "%"]
    variant = [r for r in table.measured(result) if r.scenario == "Server"]
    variant = [dataclasses.replace(r, scenario="Server, overload") for r in variant]
    changed = dataclasses.replace(
        result,
        runs=(*variant, *result.runs),
        quality=(*result.quality, *loaded),
        comparisons=tuple(c for c in result.comparisons if (c.scenario, c.measure) != ("Server", "ttft_p99_ms")),
    )
    short = {r.short: r for r in table.headline(table.rows(changed, CPU))}
    assert short["Server TPOT p50"].section == "Server" and "Server TTFT p99" not in short
    assert short["ROUGE-L under load"].value == 97.0 and "ROUGE-L" not in short


def test_a_replay_alone_has_a_headline(small):
    runs = tuple(dataclasses.replace(r, scenario="replay", kind="replay") for r in table.measured(small))
    comparisons = tuple(dataclasses.replace(c, scenario="replay") for c in small.comparisons)
    replay = dataclasses.replace(small, runs=runs, comparisons=comparisons, searches=())
    short = [r.short for r in table.headline(table.rows(replay, CPU))]
    assert short[:2] == ["replay output", "replay TTFT p50"] and "replay energy / token" in short


def test_the_ladder_has_each_side_with_the_table_s_own_figures(ladder):
    rows = table.rows(ladder, CPU)
    found = table.ladder(ladder, rows)
    assert [side for side, _ in found.rungs] == list(ladder.sides)
    assert [" ".join(heading.split()) for heading in found.headings] == [
        "Offline tokens/s",
        "ratio",
        "95 %",
        "1 stream tokens/s",
        "largest rate, /s",
        "TTFT p50, ms",
        "TPOT p50, ms",
        "bits/ byte",
    ]
    output = row(ladder, "Offline", "output_tokens_per_s")
    baseline, last = found.rungs[0][1], found.rungs[-1][1]
    assert baseline[:3] == (table.figure(output.baseline_value), "", "")
    assert last[:3] == (table.figure(output.value), table.times(output.ratio), table.between(output))


def test_a_ladder_leaves_out_what_nobody_measured(ladder):
    bare = dataclasses.replace(ladder, searches=(), quality=())
    headings = " ".join(table.ladder(bare, table.rows(bare, CPU)).headings)
    assert "largest" not in headings and "bits" not in headings


def test_a_scenario_of_two_sides_has_no_rows_of_the_others(ladder):
    """Overload is for the baseline and the last side: the sides between have no half-empty rows of it."""
    between = ladder.sides[1:-1]
    runs = [r for r in ladder.runs if r.scenario == "Server" and r.side not in between]
    runs = [dataclasses.replace(r, scenario="Server, overload") for r in runs]
    rows = table.rows(dataclasses.replace(ladder, runs=(*ladder.runs, *runs)), CPU)
    assert {r.side for r in rows if r.section == "Server, overload"} == {ladder.sides[-1]}


def test_measured_energy_is_called_so(result):
    def metered(run):
        return dataclasses.replace(run, energy=dataclasses.replace(run.energy, kind="measured"))

    changed = dataclasses.replace(result, runs=tuple(map(metered, result.runs)))
    assert row(changed, "Server", "energy_per_token").kind == "measured"


def test_what_does_not_judge_has_no_ratio(result):
    batch = row(result, "Server", "batch_mean")
    assert batch.baseline_value is not None and batch.value is not None and batch.ratio is None


def test_quality_is_graded_against_the_baseline_and_says_what_it_rests_on(result):
    bits = row(result, table.QUALITY, "bits_per_byte")
    told = next(q for q in result.quality if (q.side, q.measure) == ("optimised", "bits_per_byte"))
    assert (bits.ratio, bits.interval) == (told.ratio, told.ratio_interval)
    assert bits.note == "≥ 99 % of stock; 1.281 to 1.323; 52,110 bytes"
    rouge = row(result, table.QUALITY, "rouge_l")  # Only one side has it.
    assert (rouge.baseline_value, rouge.ratio, rouge.note) == (None, None, "98.10 to 99.30; 459 answers")


def test_a_difference_is_shown_by_an_interval_without_1(result):
    output = row(result, "Offline", "output_tokens_per_s")
    assert output.differs
    assert not dataclasses.replace(output, interval=Interval(0.9, 1.2)).differs
    assert not dataclasses.replace(output, interval=None).differs


def test_a_server_elsewhere_has_no_energy_memory_cost_or_start_of_ours(remote):
    places = [("Server", "energy_per_token"), ("Server", "cost_per_million_tokens")]
    places += [(table.START_UP, "peak_memory"), (table.START_UP, "load_s")]
    for place in places:
        found = row(remote, *place)
        assert found.baseline_value is not None and found.value is None and found.ratio is None


def test_an_unknown_price_leaves_the_cost_out(result):
    rows = table.rows(result, chips.Running("other", 1, None))
    assert not [r for r in rows if r.measure == "cost_per_million_tokens"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (1234567.0, "1,234,567"),
        (12.3456, "12.35"),
        (0.0012345, "0.001234"),
        (0.5, "0.5000"),
        (-20.0, "-20.00"),
    ],
)
def test_figures_have_four_digits(value, text):
    assert table.figure(value) == text


def test_ratios_have_the_digits_that_they_carry():
    values = (0.0042, 0.5, 0.9978, 4.826, 12.64, 1040.4, None)
    assert [table.times(x) for x in values] == ["0.004×", "0.50×", "0.998×", "4.83×", "12.6×", "1,040×", "–"]


def test_names_are_short_and_long():
    assert table.labels("ttft_p99_9_ms") == ("Time to first token, p99.9", "TTFT p99.9")
    assert table.labels("queue_p50_ms") == ("Queue time, p50", "queue p50")
    assert table.labels("gap_p99_ms") == ("Time between hand-overs, p99", "gap p99")
    assert table.labels("output_tokens_per_s")[0] == "Output throughput"


def test_disturbed_runs_are_counted_with_the_commonest_reason(small):
    assert table.disturbed(small) == "1 of 4 runs disturbed: another process used 31 % of the cores"
    reasons = (("hot",), ("another process used 7 % of the cores",), ("another process used 40 % of the cores",), ())
    probe, *others = small.runs
    runs = [dataclasses.replace(run, disturbed=why) for run, why in zip(others, reasons, strict=True)]
    changed = dataclasses.replace(small, runs=(probe, *runs))
    assert table.disturbed(changed) == "3 of 4 runs disturbed: mostly another process used 7 % of the cores"
    quiet = dataclasses.replace(small, runs=tuple(dataclasses.replace(run, disturbed=()) for run in small.runs))
    assert table.disturbed(quiet) == "0 of 4 runs disturbed"


def test_durations_are_read_at_a_glance():
    assert [table.duration(s) for s in (4.4, 242.0, 3605.0, math.nan)] == ["4 s", "4 min 2 s", "1 h 0 min 5 s", ""]
