import csv

import pytest

from flexjax import lab
from flexjax.jobs import check_gpu
from flexjax.jobs.check_gpu import Config
from flexjax.lab import BODY, Failed, Item, Machine, Row, TookTooLong, healthy
from flexjax.records import store

OP, SHAPE = "matmul", "llama3_8b_int8_decode_8"
TIMES = Item("times", OP, SHAPE, (BODY, "xla", "tokamax_triton"))
VALUE = Item("value", OP, SHAPE, (BODY, "xla"))


def test_a_machine_without_a_gpu_is_told_so_in_one_line(tmp_path, capsys):
    assert check_gpu.run(Config(), tmp_path) == 2
    assert capsys.readouterr().out.splitlines() == ["check_gpu needs an NVIDIA GPU; JAX runs on cpu here."]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(ops=("attention",)), "ops can be matmul, .*; got attention"),
        (dict(parts=("all",)), "parts can be goals, values, others; got all"),
        (dict(limit_s=0.0), "must be positive"),
    ],
)
def test_what_is_not_there_is_refused(change, told):
    with pytest.raises(ValueError, match=told):
        Config(**change)


class Here:
    """In the place of `Apart`: answers by the item's body, and keeps what was asked for."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def __call__(self, healthy, environment):
        assert environment == {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def call(self, limit_s, function, *args):
        if function is lab.machine:
            return self.answers.get("machine", Machine("a GPU", copies=1e12, products=1e15))
        (item, *_) = args
        self.asked.append((item.what, item.bodies, limit_s))
        answer = self.answers[item.what, *item.bodies] if (item.what, *item.bodies) in self.answers else "well"
        if isinstance(answer, Exception):
            raise answer
        if item.what == "value":
            return [Row("value", OP, SHAPE, BODY, "ok" if answer == "well" else answer, error=0.01, allowed=0.02)]
        timed = dict(median_s=1e-3, low_s=1e-3, high_s=2e-3, moved_bytes=9e8, operations=1e9)
        return [Row("times", OP, SHAPE, b, goal=item.goal if b == BODY else None, **timed) for b in item.bodies]


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Exit status, rows of the CSV and what was asked for, of a run whose calls are answered so."""

    def run(plan, answers, **options):
        here = Here(answers)
        monkeypatch.setattr(check_gpu.registry, "platform", lambda: "gpu")
        monkeypatch.setattr(check_gpu, "Apart", here)
        monkeypatch.setattr(lab, "plan", lambda ops, parts: plan)
        status = check_gpu.run(Config(**options), tmp_path)
        with (tmp_path / "gpu.csv").open() as file:
            return status, list(csv.DictReader(file)), here.asked

    return run


def test_goals_and_whether_they_are_met_are_printed_and_kept(ran, tmp_path, capsys):
    status, (ours, *others, value), _ = ran([TIMES, VALUE], {})
    assert status == 0
    assert (ours["body"], ours["goal"], ours["met"], ours["of_copies"]) == (BODY, "≥ 80% of copies", "True", "0.9")
    assert [row["body"] for row in others] == ["xla", "tokamax_triton"] and {row["met"] for row in others} == {""}
    assert (value["what"], float(value["error"]), value["copy_bytes_per_s"]) == ("value", 0.01, "1000000000000.0")
    assert ours["date"].startswith("20") and "tokamax" in ours["software"]
    printed = capsys.readouterr().out
    assert "1,000.0 µs, 90% of copies, 0% of products; ≥ 80% of copies: met" in printed
    assert "Goals: 1 met, 0 missed, 0 not known." in printed and "Values: 1 ok, 0 wrong" in printed
    (record,) = store.read(tmp_path / "results.parquet")
    name = f"metrics.{OP}_{SHAPE}_{BODY}"
    assert (record.columns[f"{name}_us"], record.columns[f"{name}_of_copies"]) == pytest.approx((1000.0, 0.9))
    assert record.columns[f"{name}_error"] == 0.01 and record.columns["metrics.copy_gb_per_s"] == 1000.0


def test_a_goal_that_is_missed_is_no_failure(ran, capsys):
    status, (ours, *_), _ = ran([TIMES], {"machine": Machine("a GPU", copies=2e12, products=1e15)})
    assert (status, ours["met"]) == (0, "False")
    assert "missed" in capsys.readouterr().out


@pytest.mark.parametrize("answer", ["wrong", Failed("its process died of SIGSEGV")])
def test_a_wrong_or_failed_value_is_a_failure(ran, tmp_path, answer):
    status, (row,), _ = ran([VALUE], {("value", *VALUE.bodies): answer})
    assert status == 1 and row["outcome"] in ("wrong", "failed")
    (record,) = store.read(tmp_path / "results.parquet")
    assert record.columns[f"metrics.{OP}_{SHAPE}_{BODY}_value_outcome"] == row["outcome"]


def test_where_one_body_ends_the_process_the_others_are_timed_alone(ran):
    died = Failed("its process died of SIGSEGV")
    status, rows, asked = ran([TIMES, VALUE], {("times", *TIMES.bodies): died, ("times", BODY): died})
    assert status == 1
    assert [(row["body"], row["outcome"], row["note"]) for row in rows] == [
        (BODY, "failed", "its process died of SIGSEGV"),
        ("xla", "ok", ""),
        ("tokamax_triton", "ok", ""),
        (BODY, "ok", ""),
    ]
    assert rows[0]["met"] == "False"
    assert [bodies for _, bodies, _ in asked] == [TIMES.bodies, *((b,) for b in TIMES.bodies), VALUE.bodies]


def test_a_peer_that_fails_is_no_failure_of_ours(ran):
    died = Failed("its process died of SIGSEGV")
    answers = {("times", *TIMES.bodies): died, ("times", "tokamax_triton"): TookTooLong("stopped after 90 s")}
    status, rows, _ = ran([TIMES], answers)
    assert status == 0 and [row["outcome"] for row in rows] == ["ok", "ok", "failed"]


def test_the_whole_is_bounded_and_says_what_is_left_out(ran, monkeypatch, capsys):
    clock = iter([0.0, 10.0, 70.0, 200.0])
    monkeypatch.setattr(check_gpu.time, "monotonic", lambda: next(clock))
    answers = {("value", *VALUE.bodies): TookTooLong("stopped after 30 s")}
    status, rows, asked = ran([TIMES, VALUE, TIMES], answers, limit_s=100.0, item_s=90.0)
    assert [limit for _, _, limit in asked] == [90.0, 30.0]
    assert status == 0
    assert [row["note"] for row in rows[3:]] == ["limit_s, 100 s, ended it", *["limit_s, 100 s, was over"] * 3]
    assert {row["outcome"] for row in rows[3:]} == {"left out"}
    assert "Goals: 1 met, 0 missed, 1 not known." in capsys.readouterr().out


def test_times_are_kept_where_the_limits_cannot_be_measured(ran, monkeypatch, capsys):
    monkeypatch.setattr(Here, "call", lambda self, limit_s, function, *args, call=Here.call: (
        _fail() if function is lab.machine else call(self, limit_s, function, *args)
    ))  # fmt: skip
    status, (ours, *_), _ = ran([TIMES], {})
    assert (status, ours["median_s"], ours["of_copies"], ours["met"]) == (0, "0.001", "", "")
    assert "limits could not be measured: no GPU left." in capsys.readouterr().out


def _fail():
    raise Failed("no GPU left")


def test_a_device_that_computes_is_healthy():
    healthy()
