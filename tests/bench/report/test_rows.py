import dataclasses
import json

import pytest

from flexjax import records
from flexjax.bench.report import records_of
from flexjax.bench.report.rows import model_name
from flexjax.records import environment


@pytest.fixture(scope="module")
def rows(result):
    return records_of(result, environment.collect())


def test_a_row_a_run_with_its_own_figures(rows, result):
    assert len(rows) == len(result.runs)
    for row, run in zip(rows, result.runs, strict=True):
        columns = row.columns
        assert (columns["technique.name"], columns["submission.scenario"]) == (run.side, run.scenario)
        assert columns["metrics.ttft_p99_ms"] == run.metrics.ttft_ms.p99
        assert columns["metrics.result"] == run.metrics.output_tokens_per_s
        assert columns["energy.total_j"] == run.energy.joules and columns["energy.total_j_kind"] == "estimated"
        assert columns["benchmark.loadgen_verdict"] == "VALID"
        assert columns["benchmark.loadgen_scenario"] == run.kind
        assert columns["benchmark.disturbed"] == "; ".join(run.disturbed)
        assert columns["metrics.gap_p50_ms"] == run.metrics.gap_ms.p50 > 0


def test_each_side_is_compared_with_the_baseline_and_has_its_own_kernels(ladder):
    machine = {**environment.collect(), "software.kernels": "everyone's"}
    by_side = {row.columns["technique.name"]: row.columns for row in records_of(ladder, machine)}
    assert {side: columns["technique.compared_with"] for side, columns in by_side.items()} == {
        "stock": None,
        **dict.fromkeys(ladder.sides[1:], "stock"),
    }
    assert json.loads(by_side["optimised"]["software.kernels"])["matmul"] == ["a", "b"]
    assert by_side["stock"]["software.kernels"] == "everyone's"  # It does not tell.


def test_flags_are_those_of_the_environment_and_of_a_side_s_own_compiles(result):
    machine = {**environment.collect(), "software.xla_flags": "--xla_a=1"}
    run = dataclasses.replace(result.runs[0], described={**result.runs[0].described, "xla_options": "--xla_b="})
    own, *others = records_of(dataclasses.replace(result, runs=(run, *result.runs[1:])), machine)
    assert own.columns["software.xla_flags"] == "--xla_a=1 --xla_b="
    assert {row.columns["software.xla_flags"] for row in others} == {"--xla_a=1"}


def test_quality_goes_to_its_side(rows):
    by_side = {row.columns["technique.name"]: row.columns for row in rows}
    assert by_side["stock"]["quality.bits_per_byte"] == 1.301 and "quality.rouge_l" not in by_side["stock"]
    optimised = by_side["optimised"]
    names = ("quality.rouge_l_low", "quality.rouge_l", "quality.rouge_l_high")
    assert [optimised[name] for name in names] == [98.1, 98.7, 99.3]


def test_the_whole_config_is_kept_and_the_model_named_without_its_path(rows, result):
    columns = rows[0].columns
    assert json.loads(columns["benchmark.config_json"]) == dict(result.config)
    assert columns["model.name"] == "tiny"
    assert model_name({}) == "" and model_name({"model": "a/b"}) == "b"


def test_rows_survive_the_store(rows, tmp_path):
    path = tmp_path / "results.parquet"
    records.append(path, rows)
    found = records.query(
        path,
        'SELECT "technique.name" side, median("metrics.output_tokens_per_s") rate FROM results '
        "WHERE \"submission.scenario\" = 'Server' GROUP BY side ORDER BY side",
    )
    assert [row["side"] for row in found] == ["optimised", "stock"]
    assert all(row["rate"] > 0 for row in found)


def test_an_invalid_run_says_why(invalid):
    columns = next(r.columns for r in records_of(invalid, environment.collect()) if r.columns["benchmark.round"] == 0)
    assert columns["benchmark.valid"] is False and "3 of 80 requests failed" in columns["benchmark.invalid_reasons"]


def test_a_server_elsewhere_has_no_energy_cost_or_memory_of_ours(remote):
    columns = next(r.columns for r in records_of(remote) if r.columns["technique.name"] == "optimised")
    assert not [name for name in columns if name.startswith(("energy.", "cost."))]
    assert columns["metrics.peak_memory_bytes"] is None
