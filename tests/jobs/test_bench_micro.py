import csv
import re
import types

import pytest

from flexjax.hardware import chips
from flexjax.jobs import bench_micro
from flexjax.jobs.bench_micro import Config, published
from flexjax.lab import Probe, Reading
from flexjax.records import store

SMALL = Config(dtypes=("float32",), sizes=(8, 16), memory_mib=(1,), collectives_kib=(1,), rounds=3, round_s=0.001)


def test_what_is_printed_and_kept(tmp_path, capsys):
    assert bench_micro.run(SMALL, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "float32 16" in printed and "Collectives: none, there is one device." in printed
    (record,) = store.read(tmp_path / "results.parquet")
    with (tmp_path / "micro.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert record.columns["metrics.kind"] == "measured"
    assert record.columns["metrics.matmul_float32_16_gop_per_s"] == pytest.approx(
        8.192e-6 / float(rows["float32 16"]["median_s"])
    )
    assert record.columns["metrics.waited_for_us"] == pytest.approx(1e6 * float(rows["waited for"]["median_s"]))
    assert max(float(row["of_best"]) for row in rows.values() if row["kind"] == "float32") == 1.0
    assert rows["read 1 MiB"]["of_table"] == ""  # The table of chips states no rate for a CPU.


def test_an_interrupted_run_keeps_the_parts_that_ended(tmp_path, capsys, monkeypatch):
    def interrupt(sizes_mib):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_micro, "memory", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench_micro.run(SMALL, tmp_path)
    printed = capsys.readouterr().out
    (products,) = re.findall(r"\[1/4\] Matrix products, (\d+) measured: .* left$", printed, re.MULTILINE)
    assert "Interrupted after 1 of 4 parts; what is done is kept." in printed
    (record,) = store.read(tmp_path / "results.parquet")
    assert record.columns["benchmark.valid"] is False
    assert record.columns["benchmark.invalid_reasons"] == "interrupted after 1 of 4 parts"
    assert record.columns["metrics.matmul_float32_16_gop_per_s"] > 0
    assert (tmp_path / "micro.csv").read_text().count("Matrix products") == int(products)


def test_shares_are_of_the_chips_own_published_rates():
    running = chips.Running("TPU v5 lite", 8, chips.find("v5e"))
    reading = lambda kind, work: Reading(Probe("p", kind, work, lambda n: 1.0), 1.0, 1.0, 1.0)
    assert published(reading("bfloat16", 1.0), running) == 197e12
    assert published(reading("read", 1.0), running) == 819e9
    assert published(reading("all-reduce", 1.0), running) == 200e9  # One direction of 400.
    assert published(reading("bfloat16", 1.0), types.SimpleNamespace(chip=None)) is None


def test_a_product_far_below_its_peak_is_pointed_out():
    running = chips.Running("TPU v5 lite", 1, chips.find("v5e"))
    slow = Reading(Probe("bfloat16 256", "bfloat16", 98.5e12, lambda n: 1.0), 1.0, 1.0, 1.0)
    fast = Reading(Probe("bfloat16 4096", "bfloat16", 190e12, lambda n: 1.0), 1.0, 1.0, 1.0)
    (line,) = bench_micro._short_of_goal([slow], running)
    assert "bfloat16 products reach 50%" in line
    assert not bench_micro._short_of_goal([slow, fast], running)


@pytest.mark.parametrize("change", [dict(sizes=(0,)), dict(rounds=0), dict(round_s=0.0)])
def test_sizes_and_rounds_must_be_positive(change):
    with pytest.raises(ValueError, match="must be positive"):
        Config(**change)
