import csv

import pytest

from flexjax.lab import Goal, Machine, Row, Sheet

MACHINE = Machine("a GPU", copies=1e12, products=1e15)
TIMED = Row("times", "op", "shape", "triton_gpu", median_s=1e-3, moved_bytes=8e8, operations=3e11)


def test_shares_and_goals():
    assert TIMED.shares(MACHINE) == {"copies": pytest.approx(0.8), "products": pytest.approx(0.3)}
    assert TIMED.shares(None) == {} and TIMED.met(MACHINE) is None
    goal = lambda of, share, **change: Row(**{**vars(TIMED), "goal": Goal(of, share), **change}).met(MACHINE)
    assert goal("copies", 0.79) is True
    assert goal("copies", 0.81) is False
    assert goal("products", 0.6) is False
    assert goal("copies", 0.79, outcome="failed", median_s=None) is False
    assert goal("copies", 0.79, outcome="left out", median_s=None) is None


def test_a_row_is_on_disk_before_the_next_is_begun(tmp_path):
    path = tmp_path / "gpu.csv"
    with Sheet(path, "2026-11-24", "jax 1") as sheet:
        sheet.write(TIMED, MACHINE)
        (row,) = read(path)
        sheet.write(Row("value", "op", "shape", "triton_gpu", "failed", "a, b"), None)
    assert (row["device"], row["outcome"], float(row["of_copies"])) == ("a GPU", "ok", pytest.approx(0.8))
    assert (row["date"], row["software"]) == ("2026-11-24", "jax 1")
    assert (row["goal"], row["met"], row["error"]) == ("", "", "")
    _, failed = read(path)
    assert (failed["outcome"], failed["note"], failed["device"]) == ("failed", "a, b", "")


def read(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))
