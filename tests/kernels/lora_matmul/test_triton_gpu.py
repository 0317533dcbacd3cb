"""The GPU body: its values interpreted on a CPU and, where there is one, on a GPU; what its compiler makes of it."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
import triton_interpreter
from described import GPUS, triton_kernels

from flexjax.hardware import chips
from flexjax.kernels.lora_matmul import lora_matmul
from flexjax.kernels.lora_matmul.arg_specs import ARG_SPECS, SERVING_SPECS

jax_triton = pytest.importorskip("jax_triton", reason="jax-triton is not installed (extra cuda)")


BODIES = ("triton_gpu", "base")


def test_values_by_the_interpreter():
    triton_interpreter.run_tests(Path(__file__).with_name("on_triton_interpreter.py"))


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU here")
@pytest.mark.parametrize("name", ARG_SPECS)
def test_values_on_a_gpu(name: str):
    arguments = ARG_SPECS[name].arguments()
    got, want = (np.asarray(jax.jit(functools.partial(lora_matmul, body=body))(*arguments)) for body in BODIES)
    # In bfloat16 a sum between the two products may be rounded the other way.
    np.testing.assert_allclose(got, want, atol=1e-5 if ARG_SPECS[name].dtype == "float32" else 2e-2)
    assert np.mean(np.abs(got - want)) < 1e-4


@pytest.mark.parametrize("chip", GPUS)
@pytest.mark.parametrize("name", ["llama3_8b_decode_8", "llama3_8b_prefill"])
def test_compiles_into_registers_and_shared_memory(chip: str, name: str, monkeypatch: pytest.MonkeyPatch):
    spec, compiler = SERVING_SPECS[name], chips.find(chip).compiler
    assert compiler is not None
    kernels = triton_kernels(monkeypatch, chip, lora_matmul, *jax.eval_shape(spec.arguments))
    assert [kernel.name for kernel in kernels] == ["_shrink", "_expand"]
    for kernel in kernels:
        assert kernel.spilled_bytes == 0 and kernel.registers <= 255
        assert kernel.shared_bytes <= compiler["shared_bytes_per_block"]
