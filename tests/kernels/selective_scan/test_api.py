"""Which body serves a call, and what a wrong call is told."""

import jax
import numpy as np
import pytest

from flexjax import kernels
from flexjax.kernels.recurrent import Batch
from flexjax.kernels.selective_scan import api, selective_scan
from flexjax.kernels.selective_scan.arg_specs import ArgSpec

SPEC = ArgSpec(D=8, N=4, batch=Batch((1, 3)))


def test_a_cpu_runs_plain_jax():
    kernels.forget()
    jax.eval_shape(lambda *x: selective_scan(*x, **SPEC.options), *SPEC.arguments())
    assert kernels.bodies_used()["selective_scan"] == (kernels.Choice("xla"),)


@pytest.mark.parametrize(
    ("which", "shape", "message"),
    [
        ("x", (4, 7), r"x must have shape \(4, 8\)|x must have shape \(4, 7\)|dt must have"),
        ("B", (4, 3), r"B must have shape \(4, 4\)"),
        ("skip", (7,), r"skip must have shape \(8,\)"),
        ("z", (3, 8), r"z must have shape \(4, 8\)"),
    ],
)
def test_shapes_that_do_not_fit(which: str, shape: tuple[int, ...], message: str):
    names = ("x", "dt", "A", "B", "C", "skip", "dt_bias", "z")
    arguments = dict(zip(names, SPEC.arguments(), strict=False)) | {which: np.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        api._check(**arguments)
