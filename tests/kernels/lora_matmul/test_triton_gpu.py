"""The GPU body: its values interpreted on a CPU and, where there is one, on a GPU; what its compiler makes of it."""

from pathlib import Path

import jax
import numpy as np
import pytest
import triton_interpreter
from bodies import beside_the_formula, on_a_gpu
from described import GPUS, check_fits, triton_kernels

from flexjax.kernels.lora_matmul import lora_matmul
from flexjax.kernels.lora_matmul.arg_specs import ARG_SPECS, SERVING_SPECS

jax_triton = pytest.importorskip("jax_triton", reason="jax-triton is not installed (extra cuda)")


def test_values_by_the_interpreter():
    triton_interpreter.run_tests(Path(__file__).with_name("on_triton_interpreter.py"))


@on_a_gpu
@pytest.mark.parametrize("name", ARG_SPECS)
def test_values_on_a_gpu(name: str):
    ((got, want),) = beside_the_formula(lora_matmul, ARG_SPECS[name])
    # In bfloat16 a sum between the two products may be rounded the other way.
    np.testing.assert_allclose(got, want, atol=1e-5 if ARG_SPECS[name].dtype == "float32" else 2e-2)
    assert np.mean(np.abs(got - want)) < 1e-4


@pytest.mark.parametrize("chip", GPUS)
@pytest.mark.parametrize("name", ["llama3_8b_decode_8", "llama3_8b_prefill"])
def test_compiles_into_registers_and_shared_memory(chip: str, name: str, monkeypatch: pytest.MonkeyPatch):
    kernels = triton_kernels(monkeypatch, chip, lora_matmul, *jax.eval_shape(SERVING_SPECS[name].arguments))
    check_fits(kernels, chip, ["_shrink", "_expand"])
