import dataclasses
import statistics

import pytest

from flexjax.bench.report import table
from flexjax.hardware import chips

CPU = chips.Running("cpu", 2, chips.find("cpu"))


def row(result, section, measure, running=CPU):
    return next(r for r in table.rows(result, running) if (r.section, r.measure) == (section, measure))


def test_every_comparison_has_its_row_in_order(result):
    found = [(r.section, r.measure) for r in table.rows(result, CPU)]
    compared = [(c.scenario, c.measure) for c in result.comparisons]
    assert [pair for pair in found if pair in compared] == compared
    assert len(found) == len(set(found))
    sections = list(dict.fromkeys(section for section, _ in found))
    assert sections == ["SingleStream", "Offline", "Server", "Interactive", "Quality", "Start-up"]


def test_energy_and_cost_are_medians_of_rounds_and_called_estimates(result):
    runs = [r for r in result.runs if r.scenario == "Server"]
    joules = {
        side: [r.energy.joules / r.metrics.output_tokens for r in runs if r.side == side] for side in result.sides
    }
    energy = row(result, "Server", "energy_per_token")
    assert energy.a == pytest.approx(1e3 * statistics.median(joules["stock"]))
    ratios = [a / b for a, b in zip(joules["stock"], joules["optimised"], strict=True)]
    assert (energy.ratio, energy.ratio_min, energy.ratio_max) == pytest.approx(
        (statistics.median(ratios), min(ratios), max(ratios))
    )
    assert energy.kind == "estimated" and row(result, "Server", "cost_per_million_tokens").kind == "estimated"


def test_cost_follows_throughput_on_the_same_hardware(result):
    """Same price, same tokens and time: the ratio is that of the throughputs."""
    tokens = row(result, "Offline", "output_tokens_per_s")
    assert row(result, "Offline", "cost_per_million_tokens").ratio == pytest.approx(tokens.ratio)


def test_measured_energy_is_called_so(result):
    def metered(run):
        return dataclasses.replace(run, energy=dataclasses.replace(run.energy, kind="measured"))

    changed = dataclasses.replace(result, runs=tuple(map(metered, result.runs)))
    assert row(changed, "Server", "energy_per_token").kind == "measured"


def test_what_does_not_judge_has_no_ratio(result):
    batch = row(result, "Server", "batch_mean")
    assert batch.a is not None and batch.b is not None and batch.ratio is None


def test_quality_is_graded_against_side_a(result):
    bits = row(result, "Quality", "bits_per_byte")
    assert bits.ratio == pytest.approx(1.301 / 1.3022) and bits.note == "≥ 99.9 %"
    assert row(result, "Quality", "rouge_l").ratio is None  # Only one side has it.


def test_a_server_elsewhere_has_no_energy_memory_cost_or_start_of_ours(remote):
    for measure in ("energy_per_token", "cost_per_million_tokens", "peak_memory"):
        found = row(remote, "Server", measure)
        assert found.a is not None and found.b is None and found.ratio is None
    assert row(remote, "Start-up", "load_s").b is None


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
    assert [table.times(x) for x in (0.5, 4.826, 12.64, 1040.4, None)] == ["0.50×", "4.83×", "12.6×", "1,040×", "–"]


def test_names_are_short_and_long():
    assert table.labels("ttft_p99_9_ms") == ("Time to first token, p99.9", "TTFT p99.9")
    assert table.labels("queue_p50_ms") == ("Queue time, p50", "queue p50")
    assert table.labels("output_tokens_per_s")[0] == "Output throughput"
