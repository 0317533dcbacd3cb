import io
import re

import numpy as np
import pytest
from rich.console import Console

from flexjax.virtual import report

COMMON = {
    "datetime": "2026-11-24T00:00:00+00:00",
    "benchmark.name": "flexjax-compile",
    "benchmark.version": "1",
    "benchmark.valid": True,
    "benchmark.invalid_reasons": "",
    "benchmark.loadgen_verdict": "not driven by LoadGen",
    "benchmark.config_json": "{}",
    "software.git_revision": "0",
    "software.xla_flags": "",
}


def printed(reports, width: int) -> str:
    out = io.StringIO()
    report.print_report(Console(file=out, width=width), reports, "title")
    return out.getvalue()


def test_the_table_fits_80_columns_and_loses_nothing(reports):
    text = printed(reports, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    rows = {m[1]: m[0].split() for m in re.finditer(r"^((?:decode|mixed) \d+) .*$", text, re.MULTILINE)}
    assert list(rows) == ["decode 8", "decode 16", "mixed 32", "mixed 64"]
    assert rows["mixed 64"] == "mixed 64 does not fit: 2.00 GiB missing".split()
    # 3 × (0.1 ms of cycles + 0.1 ms of kernel + 1.5 µs over the links).
    assert rows["decode 8"][-4:] == ["0.60", "0.30", "2.00", "13,234"]


def test_what_holds_the_largest_steps_back_is_listed(reports):
    text = printed(reports, 80)
    assert "What holds back decode 16" in text and "What holds back mixed 32" in text
    assert "kernel ragged_paged_attention" in text


def test_the_static_time_of_another_context_moves_attention_alone(reports):
    first = reports[0]
    assert report.static_seconds_at(first, 256) == pytest.approx(first.static_seconds)
    grown = report.static_seconds_at(first, 512) - first.static_seconds
    assert grown == pytest.approx(first.attention_seconds) == pytest.approx(2.7e-4)


def test_records_are_compiled_rows_of_the_described_chip(reports):
    decode, _, mixed, too_large = (row.columns for row in report.records(reports, COMMON))
    assert {row["metrics.kind"] for row in (decode, mixed, too_large)} == {"compiled"}
    assert (decode["submission.scenario"], mixed["submission.scenario"]) == ("decode", "mixed")
    assert decode["system.accelerator.name"] == "Google TPU v5e"
    assert decode["metrics.sent_all_reduce_bytes"] == 3000
    assert decode["metrics.static_tokens_per_s"] == pytest.approx(8 / 6.03e-4, rel=0.01)
    assert (too_large["metrics.fits"], too_large["metrics.missing_bytes"]) == (False, 2 * 2**30)
    assert "metrics.static_ms" not in too_large


def test_the_picture_is_blank_where_it_does_not_fit(reports, budget):
    figure = report.plot(reports, budget, "title")
    (axes, _) = figure.axes
    (image,) = axes.images
    rates = np.ma.filled(image.get_array(), np.nan)
    contexts = [int(label.get_text().replace(",", "")) for label in axes.get_xticklabels()]
    assert contexts == [128, 256, 512, 1024, 2048, 4096]
    fits = [[budget.missing(batch, context) <= 0 for context in contexts] for batch in (8, 16)]
    np.testing.assert_array_equal(~np.isnan(rates), fits)
    assert not all(map(all, fits)) and any(map(any, fits))
