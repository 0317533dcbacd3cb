import dataclasses
import json

import pytest

from flexjax.records import JobRecord, store
from flexjax.refusal import Refusal


@dataclasses.dataclass(frozen=True)
class Config:
    rounds: int = 7
    shapes: tuple[int, ...] = (1, 2)


def test_a_row_stands_in_the_store_and_alone(tmp_path):
    record = JobRecord.begin("weighing", "3", Config(), tmp_path)
    record.keep({"metrics.weight_kg": 2.5}, kind="estimated")
    record.keep({"metrics.weight_kg": 2.75}, kind="estimated", fault="interrupted")
    rows = store.read(tmp_path / "results.parquet")  # In no order: both were written within one second.
    first, second = sorted(rows, key=lambda row: row.columns["metrics.weight_kg"])
    assert (first.columns["benchmark.name"], first.columns["benchmark.version"]) == ("flexjax-weighing", "3")
    assert (first.columns["metrics.weight_kg"], first.columns["metrics.kind"]) == (2.5, "estimated")
    assert first.columns["benchmark.valid"] is True and second.columns["benchmark.valid"] is False
    assert second.columns["benchmark.invalid_reasons"] == "interrupted"
    assert json.loads(str(first.columns["benchmark.config_json"])) == {"rounds": 7, "shapes": [1, 2]}
    (alone,) = json.loads((tmp_path / "record.json").read_text())
    assert alone["metrics.weight_kg"] == 2.75 and alone["datetime"] == record.began


def test_a_store_that_takes_no_rows_is_refused_before_the_work(tmp_path):
    (tmp_path / "results.parquet").write_text("a file")
    with pytest.raises(Refusal, match="must be a folder"):
        JobRecord.begin("weighing", "1", Config(), tmp_path)
