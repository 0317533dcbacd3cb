"""The GPU body: its values interpreted on a CPU and, where there is one, on a GPU; what its compiler makes of it."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
import triton_interpreter
from described import GPUS, triton_kernels

from flexjax.hardware import chips
from flexjax.kernels.ssd import ssd
from flexjax.kernels.ssd.arg_specs import ARG_SPECS

jax_triton = pytest.importorskip("jax_triton", reason="jax-triton is not installed (extra cuda)")


def test_values_by_the_interpreter():
    triton_interpreter.run_tests(Path(__file__).with_name("on_triton_interpreter.py"))


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU here")
@pytest.mark.parametrize("name", ARG_SPECS)
def test_values_on_a_gpu(name: str):
    spec = ARG_SPECS[name]
    run = lambda body: jax.jit(functools.partial(ssd, body=body, **spec.options))(*spec.arguments())
    for got, want in zip(run("triton_gpu"), run("base"), strict=True):
        got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
        unit = 2**-8 if spec.dtype == "bfloat16" else 2e-5
        np.testing.assert_allclose(got, want, atol=unit * np.abs(want).max(), rtol=unit)


@pytest.mark.parametrize("chip", GPUS)
def test_compiles_into_registers_and_shared_memory(chip: str, monkeypatch: pytest.MonkeyPatch):
    spec, compiler = ARG_SPECS["mamba2_130m_mixed"], chips.find(chip).compiler
    assert compiler is not None
    # The op itself: for a described GPU it takes this body.
    kernels = triton_kernels(monkeypatch, chip, functools.partial(ssd, **spec.options), *spec.arguments())
    assert [kernel.name for kernel in kernels] == ["_ssd"]
    for kernel in kernels:
        assert kernel.spilled_bytes == 0 and kernel.registers <= 255
        assert kernel.shared_bytes <= compiler["shared_bytes_per_block"]
