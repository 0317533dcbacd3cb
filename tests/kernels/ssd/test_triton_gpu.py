"""The GPU body: its values interpreted on a CPU and, where there is one, on a GPU; what its compiler makes of it."""

import functools
from pathlib import Path

import numpy as np
import pytest
import triton_interpreter
from bodies import beside_the_formula, on_a_gpu
from described import GPUS, check_fits, triton_kernels

from flexjax.kernels.ssd import ssd
from flexjax.kernels.ssd.arg_specs import ARG_SPECS

jax_triton = pytest.importorskip("jax_triton", reason="jax-triton is not installed (extra cuda)")


def test_values_by_the_interpreter():
    triton_interpreter.run_tests(Path(__file__).with_name("on_triton_interpreter.py"))


@on_a_gpu
@pytest.mark.parametrize("name", ARG_SPECS)
def test_values_on_a_gpu(name: str):
    spec = ARG_SPECS[name]
    for got, want in beside_the_formula(ssd, spec):
        unit = 2**-8 if spec.dtype == "bfloat16" else 2e-5
        np.testing.assert_allclose(got, want, atol=unit * np.abs(want).max(), rtol=unit)


@pytest.mark.parametrize("chip", GPUS)
def test_compiles_into_registers_and_shared_memory(chip: str, monkeypatch: pytest.MonkeyPatch):
    spec = ARG_SPECS["mamba2_130m_mixed"]
    # The op itself: for a described GPU it takes this body.
    kernels = triton_kernels(monkeypatch, chip, functools.partial(ssd, **spec.options), *spec.arguments())
    check_fits(kernels, chip, ["_ssd"])
