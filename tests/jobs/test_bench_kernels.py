import csv
import dataclasses
import functools
from importlib import import_module

import jax.numpy as jnp
import pytest

from flexjax.jobs import bench_kernels
from flexjax.jobs.bench_kernels import Config
from flexjax.kernels.case import Case
from flexjax.lab import Limits, limits
from flexjax.records import store


def case(body: str, step) -> Case:
    make = lambda: (jnp.zeros((64, 64)), jnp.ones((64, 64)))
    return Case("an_op", "small", body, make, step, moved_bytes=16_384.0, operations=4096.0, dtype="float32", calls=2)


def refuse(x, y):
    raise NotImplementedError("too small")


def test_bodies_are_timed_against_the_limit_and_refusals_told(tmp_path, capsys, monkeypatch):
    cases = [case("fast", lambda x, y: x + y), case("other", lambda x, y: x - y), case("none", refuse)]
    monkeypatch.setattr(bench_kernels, "_cases", lambda op: iter(cases))
    monkeypatch.setitem(import_module("flexjax.lab.limits").MATRIX, "cpu", (64, 64))
    monkeypatch.setattr(bench_kernels, "limits", functools.partial(limits, sizes_mib=(1,)))
    config = Config(ops=("ragged_paged_attention",), rounds=2, round_s=0.001)
    assert bench_kernels.run(config, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "none does not serve" in printed and "too small" in printed
    with (tmp_path / "kernels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["body"] for row in rows] == ["fast", "other"]
    (record,) = store.read(tmp_path / "results.parquet")
    for row in rows:
        share = float(row["limit_s"]) / float(row["median_s"])
        assert record.columns[f"metrics.an_op_small_{row['body']}_of_limit"] == pytest.approx(share)
        assert record.columns[f"metrics.an_op_small_{row['body']}_us"] == pytest.approx(1e6 * float(row["median_s"]))


def test_an_interrupted_run_keeps_the_shapes_that_were_timed(tmp_path, capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    second = dataclasses.replace(case("fast", refuse), shape="second", make=interrupt)
    monkeypatch.setattr(bench_kernels, "_cases", lambda op: iter([case("fast", lambda x, y: x + y), second]))
    monkeypatch.setattr(
        bench_kernels, "limits", lambda *args: Limits(read={1: 1e9}, copy={1: 1e9}, products={"float32": 1e9})
    )
    with pytest.raises(KeyboardInterrupt):
        bench_kernels.run(Config(ops=("ssd",), rounds=1, round_s=0.001), tmp_path)
    assert "[1/3] an_op small: fast " in capsys.readouterr().out
    assert len((tmp_path / "kernels.csv").read_text().splitlines()) == 2
    (record,) = store.read(tmp_path / "results.parquet")
    assert record.columns["benchmark.invalid_reasons"] == "interrupted after 1 of 3 parts"


def test_a_shape_too_large_for_this_machine_is_left_out_and_told(tmp_path, capsys, monkeypatch):
    large = dataclasses.replace(case("fast", refuse), shape="huge", moved_bytes=1e15)
    monkeypatch.setattr(bench_kernels, "_cases", lambda op: iter([case("fast", lambda x, y: x + y), large]))
    machine = Limits(read={1: 1e9}, copy={1: 1e9}, products={"float32": 1e9})
    monkeypatch.setattr(bench_kernels, "limits", lambda *args: machine)
    assert bench_kernels.run(Config(ops=("ssd",), rounds=1, round_s=0.001), tmp_path) == 0
    assert "an_op: too large to be timed here (over 0.025 s a step): huge." in capsys.readouterr().out
    assert "huge" not in (tmp_path / "kernels.csv").read_text()


def test_an_op_that_is_not_there_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="ops can be .*ragged_paged_attention.*; got attention"):
        Config(ops=("attention",))


def test_a_shape_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No shape of ragged_paged_attention has 'nothing' in its name"):
        bench_kernels.run(Config(ops=("ragged_paged_attention",), shapes="nothing"), tmp_path)
