"""The GPU body: its values interpreted on a CPU and, where there is one, on a GPU; what its compiler makes of it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import triton_interpreter
from bodies import beside_the_formula, on_a_gpu
from described import GPUS, triton_kernels

from flexjax.kernels.sample_top import sample_top
from flexjax.kernels.sample_top.arg_specs import ARG_SPECS

jax_triton = pytest.importorskip("jax_triton", reason="jax-triton is not installed (extra cuda)")


def test_values_by_the_interpreter():
    triton_interpreter.run_tests(Path(__file__).with_name("on_triton_interpreter.py"))


@on_a_gpu
@pytest.mark.parametrize("name", ARG_SPECS)
def test_values_on_a_gpu(name: str):
    ((got, want),) = beside_the_formula(sample_top, ARG_SPECS[name])
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("chip", GPUS)
def test_compiles_into_registers(chip: str, monkeypatch: pytest.MonkeyPatch):
    rule = lambda dtype: jax.ShapeDtypeStruct((64,), dtype)
    logits = jax.ShapeDtypeStruct((64, 128_256), jnp.float32)
    rules = (rule(jnp.int32), rule(jnp.float32), rule(jnp.float32))
    (kernel,) = triton_kernels(monkeypatch, chip, sample_top, logits, *rules)
    assert kernel.spilled_bytes == 0 and kernel.registers <= 64
