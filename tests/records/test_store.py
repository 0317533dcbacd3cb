import json
import subprocess
import sys

import pytest

from flexjax import records
from flexjax.records import Record
from flexjax.records.schema import REQUIRED
from flexjax.refusal import Refusal


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
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
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


def three(path):
    """The three parts of a store, oldest first."""
    return [records.append(path, [record(f"2026-01-0{day}")]) for day in (1, 2, 3)]


def days(path):
    return [row.columns["datetime"] for row in records.read(path)]


@pytest.mark.parametrize("length", [0, 4, 1000])
def test_a_cut_part_costs_its_own_rows_alone(path, length, caplog):
    parts = three(path)
    content = parts[1].read_bytes()[:length]
    parts[1].write_bytes(content)
    assert days(path) == ["2026-01-01", "2026-01-03"]
    assert "cannot be read and is left out" in caplog.text
    assert parts[1].exists()  # Reading changes nothing.

    records.append(path, [record("2026-01-04")])
    assert days(path) == ["2026-01-01", "2026-01-03", "2026-01-04"]
    assert parts[1].with_name(f"{parts[1].name}.unreadable").read_bytes() == content
    assert f"is now {parts[1]}.unreadable" in caplog.text


def test_any_flipped_bit_of_a_part_is_found(path, caplog):
    part = three(path)[1]
    whole = part.read_bytes()
    for position in range(0, len(whole), len(whole) // 40):
        flipped = bytearray(whole)
        flipped[position] ^= 16
        part.write_bytes(flipped)
        caplog.clear()
        assert days(path) == ["2026-01-01", "2026-01-03"], position
        assert "its bytes have changed since it was written" in caplog.text


def test_a_part_of_an_older_version_is_known_by_its_footer(path, caplog):
    parts = [part.rename(path / f"{number}-0123abcd.parquet") for number, part in enumerate(three(path))]
    parts[1].write_bytes(parts[1].read_bytes()[:-9])
    assert days(path) == ["2026-01-01", "2026-01-03"]
    records.prepare(path)
    assert sorted(p.name for p in path.iterdir()) == [
        *("0-0123abcd.parquet", "1-0123abcd.parquet.unreadable", "2-0123abcd.parquet")
    ]


def test_a_file_in_the_place_of_a_store_is_refused_before_anything_is_measured(path):
    path.write_text("PAR1")
    with pytest.raises(Refusal, match="must be a folder of Parquet parts; it is a file"):
        records.prepare(path)
    assert path.read_text() == "PAR1"


def test_a_new_store_needs_no_preparation(path):
    records.prepare(path)
    assert not path.exists()


def test_json_that_cannot_be_read_is_a_word(tmp_path, caplog):
    assert records.read_json(tmp_path / "none.json") is None and not caplog.text
    for content in (b"", b'[{"a": 1', b"\xff\xfe"):
        (tmp_path / "torn.json").write_bytes(content)
        assert records.read_json(tmp_path / "torn.json") is None
        assert "torn.json cannot be read" in caplog.text
        caplog.clear()


def test_an_empty_store_says_so(path):
    assert records.append(path, []) is None
    with pytest.raises(ValueError, match="no records in"):
        records.query(path)


def test_json_holds_every_row(tmp_path):
    rows = [record("2026-01-01"), record("2026-01-02", **{"technique.bits": None})]
    records.write_json(tmp_path / "record.json", rows)
    assert json.loads((tmp_path / "record.json").read_text()) == [dict(r.columns) for r in rows]
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
