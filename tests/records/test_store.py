import json
import subprocess
import sys

import pytest

from flexjax import records
from flexjax.records import Record
from flexjax.records.schema import REQUIRED


def record(when, **extra):
    return Record.of(dict.fromkeys(REQUIRED, "x") | {"benchmark.valid": True, "datetime": when} | extra)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.parquet"


def test_rows_come_back_as_they_went_in(path):
    rows = [record("2026-01-01", **{"technique.bits": 8, "technique.name": "a'b"}), record("2026-01-02")]
    records.append(path, rows)
    assert [dict(r.columns) for r in records.read(path)] == [dict(r.columns) for r in rows]


def test_nothing_that_was_stored_is_touched(path):
    first = records.append(path, [record("2026-01-01")])
    before = first.read_bytes()
    records.append(path, [record("2026-01-02")])
    assert first.read_bytes() == before
    assert [r.columns["datetime"] for r in records.read(path)] == ["2026-01-01", "2026-01-02"]


def test_new_columns_and_wider_numbers_join_old_rows(path):
    records.append(path, [record("2026-01-01", **{"technique.batch": 4})])
    records.append(path, [record("2026-01-02", **{"technique.batch": 4.5, "technique.new": "y"})])
    found = records.query(path, 'SELECT "technique.batch" b, "technique.new" n FROM results ORDER BY datetime')
    assert found == [{"b": 4.0, "n": None}, {"b": 4.5, "n": "y"}]


def test_a_column_with_no_value_yet_takes_any_type_later(path):
    records.append(path, [record("2026-01-01", **{"technique.x": None})])
    records.append(path, [record("2026-01-02", **{"technique.x": "text"})])
    assert records.query(path, 'SELECT "technique.x" x FROM results ORDER BY datetime') == [{"x": None}, {"x": "text"}]


def test_a_column_keeps_its_type(path):
    records.append(path, [record("2026-01-01", **{"technique.x": 1})])
    before = sorted(path.iterdir())
    with pytest.raises(ValueError, match=r"technique\.x holds number values .* cannot take a text"):
        records.append(path, [record("2026-01-02", **{"technique.x": "one"})])
    with pytest.raises(ValueError, match=r"technique\.y must hold one type"):
        records.append(path, [record("1", **{"technique.y": True}), record("2", **{"technique.y": 1})])
    assert sorted(path.iterdir()) == before


def test_a_crash_while_writing_loses_only_that_row(path, monkeypatch):
    records.append(path, [record("2026-01-01")])
    monkeypatch.setattr("os.rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        records.append(path, [record("2026-01-02")])
    assert [r.columns["datetime"] for r in records.read(path)] == ["2026-01-01"]


def test_processes_append_at_the_same_time(path):
    program = (
        "import sys, pathlib; from flexjax import records; from flexjax.records.schema import REQUIRED;"
        "row = dict.fromkeys(REQUIRED, 'x') | {'datetime': sys.argv[2]};"
        "records.append(pathlib.Path(sys.argv[1]), [records.Record.of(row)])"
    )
    days = ["2026-01-01", "2026-01-02", "2026-01-03"]
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), day]) for day in days]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert [r.columns["datetime"] for r in records.read(path)] == days


def test_an_empty_store_says_so(path):
    assert records.append(path, []) is None
    with pytest.raises(ValueError, match="no records in"):
        records.query(path)


def test_json_holds_every_row(tmp_path):
    rows = [record("2026-01-01"), record("2026-01-02", **{"technique.bits": None})]
    records.write_json(tmp_path / "record.json", rows)
    assert json.loads((tmp_path / "record.json").read_text()) == [dict(r.columns) for r in rows]
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
