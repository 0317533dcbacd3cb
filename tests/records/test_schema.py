import numpy as np
import pytest

from flexjax.records import Record
from flexjax.records.schema import REQUIRED


def row(**extra):
    return dict.fromkeys(REQUIRED, "x") | {"benchmark.valid": True} | extra


def test_a_good_row_is_kept_as_it_is():
    columns = row(
        **{
            "metrics.kind": "measured",
            "metrics.ttft_p99_ms": 12.5,
            "energy.total_j": 3.0,
            "energy.total_j_kind": "estimated",
        }
    )
    assert dict(Record.of(columns).columns) == columns


def test_a_figure_that_was_never_observed_becomes_none_and_numpy_becomes_plain():
    record = Record.of(
        row(**{"metrics.kind": "measured", "metrics.a_ms": float("nan"), "metrics.b_ms": np.float32(0.5)})
    )
    assert record.columns["metrics.a_ms"] is None
    assert type(record.columns["metrics.b_ms"]) is float


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        ({"speed.tokens": 1.0}, "'speed.tokens' stands in no known group"),
        ({"tokens": 1.0}, "'tokens' is no dotted name"),
        ({"Metrics.X": 1.0}, "no dotted name"),
        ({"technique.bits": [4, 8]}, "technique.bits is a list"),
        ({"metrics.kind": "measured", "metrics.x_ms": float("inf")}, "metrics.x_ms is infinite"),
        ({"metrics.x_ms": 1.0}, "metrics.kind is missing"),
        ({"metrics.kind": "guessed", "metrics.x_ms": 1.0}, "metrics.kind is 'guessed'"),
        ({"energy.total_j": 1.0}, "energy.total_j has no energy.total_j_kind"),
        ({"cost.usd_per_million_output_tokens": 1.0}, "_kind beside it"),
        ({"cost.x_usd": None, "cost.x_usd_kind": "maybe"}, "cost.x_usd_kind is 'maybe'"),
    ],
)
def test_a_bad_column_is_named(extra, error):
    with pytest.raises(ValueError, match=error):
        Record.of(row(**extra))


def test_every_missing_column_is_named_at_once():
    columns = row()
    del columns["datetime"], columns["software.xla_flags"]
    with pytest.raises(ValueError, match=r"datetime is missing; software\.xla_flags is missing"):
        Record.of(columns)


def test_the_names_are_those_of_open_mlperf(shared_data):
    import pyarrow.parquet as pq

    from flexjax.records import environment

    published = set(pq.read_schema(shared_data / "mlperf" / "openmlperf_llm_v4.1_v5.0.parquet").names)
    ours = set(REQUIRED) | set(environment.collect())
    shared = {
        "datetime",
        "benchmark.name",
        "benchmark.version",
        "submission.scenario",
        "software.framework",
        "software.operating_system",
        "system.cpu.model",
        "system.cpu.vendor",
        "system.cpu.core_count",
        "system.accelerator.name",
        "system.accelerator.vendor",
        "system.accelerator.total_count",
        "system.accelerator.count_per_node",
        "system.number_of_nodes",
    }
    assert shared <= published & ours
