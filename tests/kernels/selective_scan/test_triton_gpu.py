"""The GPU body: its values interpreted on a CPU and, where there is one, on a GPU; what its compiler makes of it."""

import functools
from pathlib import Path

import numpy as np
import pytest
import triton_interpreter
from bodies import beside_the_formula, on_a_gpu
from described import GPUS, check_fits, triton_kernels

from flexjax.kernels.selective_scan import selective_scan
from flexjax.kernels.selective_scan.arg_specs import ARG_SPECS

jax_triton = pytest.importorskip("jax_triton", reason="jax-triton is not installed (extra cuda)")


def test_values_by_the_interpreter():
    triton_interpreter.run_tests(Path(__file__).with_name("on_triton_interpreter.py"))


@on_a_gpu
@pytest.mark.parametrize("name", ARG_SPECS)
def test_values_on_a_gpu(name: str):
    spec = ARG_SPECS[name]
    for got, want in beside_the_formula(selective_scan, spec):
        np.testing.assert_allclose(got, want, atol=5e-5 if spec.dtype == "float32" else 2**-4)


@pytest.mark.parametrize("chip", GPUS)
def test_compiles_into_registers_and_shared_memory(chip: str, monkeypatch: pytest.MonkeyPatch):
    spec = ARG_SPECS["mamba_130m_mixed"]
    # The op itself: for a described GPU it takes this body.
    kernels = triton_kernels(monkeypatch, chip, functools.partial(selective_scan, **spec.options), *spec.arguments())
    check_fits(kernels, chip, ["_scan"])
