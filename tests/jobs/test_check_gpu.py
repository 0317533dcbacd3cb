import csv
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.jobs import check_gpu
from flexjax.jobs.check_gpu import Checked, Config
from flexjax.kernels.case import Case


def test_a_machine_without_a_gpu_is_told_so_in_one_line(tmp_path, capsys):
    assert check_gpu.run(Config(), tmp_path) == 2
    assert capsys.readouterr().out.splitlines() == ["check_gpu needs an NVIDIA GPU; JAX runs on cpu here."]
    assert not list(tmp_path.iterdir())


def test_an_op_without_a_gpu_body_is_refused():
    with pytest.raises(ValueError, match="ops can be lora_matmul, .*; got attention"):
        Config(ops=("attention",))


def test_bodies_are_held_against_the_formula():
    checked = list(check_gpu.check("lora_matmul", "xla"))
    assert len(checked) > 5 and not any(each.wrong for each in checked)
    assert max(each.error for each in checked if each.error is not None) > 0


@pytest.mark.parametrize(
    ("got", "error"),
    [
        ([1.0, -np.inf, 4.0], 0.0),
        ([1.5, -np.inf, 4.0], 0.125),
        ([1.0, 0.0, 4.0], np.inf),
        ([np.nan, -np.inf, 4.0], np.nan),
    ],
)
def test_errors_are_of_the_largest_finite_value(got, error):
    np.testing.assert_equal(check_gpu._error(jnp.asarray(got), jnp.asarray([1.0, -np.inf, 4.0])), error)


@pytest.mark.parametrize(("error", "wrong"), [(0.01, False), (0.03, True), (float("nan"), True), (None, False)])
def test_what_is_wrong(error, wrong):
    assert Checked("op", "shape", error, allowed=0.02).wrong is wrong


def small(op):
    def step(body, x, y):
        if body == "xla":
            raise NotImplementedError("not here")
        return x + y

    make = lambda: (jnp.zeros((8, 8)), jnp.ones((8, 8)))
    yield [
        Case(op, "small", body, make, functools.partial(step, body), 512.0, 64.0, "float32")
        for body in ("triton_gpu", "xla")
    ]


@pytest.mark.parametrize(("error", "status"), [(0.001, 0), (0.5, 1)])
def test_figures_are_kept_and_a_wrong_value_fails(tmp_path, capsys, monkeypatch, error, status):
    """Everything but the GPU."""
    monkeypatch.setattr(check_gpu.registry, "platform", lambda: "gpu")
    monkeypatch.setattr(check_gpu, "check", lambda op: [Checked(op, "tiny", error, 0.02)])
    monkeypatch.setattr(check_gpu, "_limits", lambda config: (1e9, 1e12))
    monkeypatch.setattr(check_gpu, "_serving", small)
    assert check_gpu.run(Config(ops=("lora_matmul",), rounds=2, round_s=0.001), tmp_path) == status
    assert "1 shapes checked" in capsys.readouterr().out
    with (tmp_path / "gpu.csv").open() as file:
        values, times = csv.DictReader(file)
    assert (values["shape"], float(values["error"])) == ("tiny", error)
    assert (times["shape"], times["body"], float(times["moved_bytes"])) == ("small", "triton_gpu", 512)
    assert 0 < float(times["low_s"]) <= float(times["median_s"])
