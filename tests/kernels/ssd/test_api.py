"""Which body serves a call, and what a wrong call is told."""

import jax
import numpy as np
import pytest

from flexjax import kernels
from flexjax.kernels.recurrent import Batch
from flexjax.kernels.ssd import api, ssd
from flexjax.kernels.ssd.arg_specs import ArgSpec

SPEC = ArgSpec(H=4, P=2, G=2, N=4, batch=Batch((1, 3)))


def test_a_cpu_runs_plain_jax():
    kernels.forget()
    jax.eval_shape(lambda *x: ssd(*x, **SPEC.options), *SPEC.arguments())
    assert kernels.bodies_used()["ssd"] == (kernels.Choice("xla"),)


@pytest.mark.parametrize(
    ("which", "shape", "message"),
    [
        ("x", (4, 9), "H must divide D, and G H; D=9, H=4, G=2"),
        ("A", (3,), "H must divide D, and G H; D=8, H=3, G=2"),
        ("dt", (4, 3), r"dt must have shape \(4, 4\)"),
        ("C", (4, 2, 5), r"C must have shape \(4, 2, 4\)"),
        ("skip", (8,), r"skip must have shape \(4,\)"),
    ],
)
def test_shapes_that_do_not_fit(which: str, shape: tuple[int, ...], message: str):
    names = ("x", "dt", "A", "B", "C", "skip")
    arguments = dict(zip(names, SPEC.arguments(), strict=False)) | {which: np.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        api._check(**arguments)
