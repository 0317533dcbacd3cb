import dataclasses
from importlib import import_module
from typing import Any

import pytest

from flexjax.jobs import bench_cpu
from flexjax.jobs.bench_cpu import Config
from flexjax.kernels.matmul import cpu
from flexjax.records import store


@pytest.fixture
def config(monkeypatch) -> Config:
    monkeypatch.setitem(bench_cpu.SIZES, "S", (1, 32, 2, 1, 64, 96))
    monkeypatch.setitem(import_module("flexjax.lab.limits").MATRIX, "cpu", (8, 64))
    return Config(
        sizes=("S",), precisions=("int8_rows",), prompt=8, output=6, prefill=30, batches=(2,),
        batch_size="S", batch_precisions=("int8_rows",), resident_sizes=(), rounds=1, step_rows=32,
        decode_steps=2,
    )  # fmt: skip


@pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")
def test_decoding_and_prefill_are_timed_against_limits_of_the_same_run(config, tmp_path, capsys):
    assert bench_cpu.run(config, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "prefill_30" in printed and "batch_2" in printed
    (record,) = store.read(tmp_path / "results.parquet")
    columns: dict[str, Any] = dict(record.columns)
    ms, gb_per_s = columns["metrics.s_int8_rows_decode_ms"], columns["metrics.s_int8_rows_read_gb_per_s"]
    assert 0 < columns["metrics.s_int8_rows_decode_ms_of_limit"] < 1
    assert columns["metrics.s_int8_rows_prefill_30_tokens_per_s"] > 0
    assert 5e3 < ms * gb_per_s * 1e6 < 5e4  # Weights, and eleven tokens' keys and values.
    assert columns["metrics.s_int8_rows_batch_2_tokens_per_s"] > 0
    assert '"matmul": ["cpu"]' in columns["technique.kernels_json"]


def test_an_interrupted_run_keeps_the_rounds_that_ended(config, tmp_path, capsys, monkeypatch):
    real, calls = bench_cpu._generate, []

    def generate(*args):
        calls.append(args)
        if len(calls) == 5:  # After two rounds of decoding and a long prompt each.
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(bench_cpu, "_generate", generate)
    config = dataclasses.replace(config, precisions=("float32",), rounds=2)
    with pytest.raises(KeyboardInterrupt):
        bench_cpu.run(config, tmp_path)
    printed = capsys.readouterr().out
    assert "[1/8] S: 1 precisions compiled: " in printed
    assert "[3/8] S, round 1 of 2: ms a token float32 " in printed
    assert "Interrupted after 3 of 8 parts; what is done is kept." in printed
    (record,) = store.read(tmp_path / "results.parquet")
    assert record.columns["metrics.s_float32_decode_ms"] > 0
    assert record.columns["benchmark.invalid_reasons"] == "interrupted after 3 of 8 parts"
    assert not [name for name in record.columns if "batch" in name and name.startswith("metrics.")]


def test_an_unknown_size_or_precision_is_refused():
    with pytest.raises(ValueError, match="sizes can be S, M, L; got XL"):
        Config(sizes=("XL",))
    with pytest.raises(
        ValueError, match="precisions can be float32, bfloat16, int8, int8_rows, int4, int4_rows; got int3"
    ):
        Config(batch_precisions=("int3",))
