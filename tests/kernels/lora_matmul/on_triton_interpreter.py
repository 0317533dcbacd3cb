"""Values of the GPU body without a GPU; test_triton_gpu.py runs this file in a process of its own."""

import jax_triton
import numpy as np
import pytest
import triton_interpreter

from flexjax.kernels.lora_matmul import lora_matmul
from flexjax.kernels.lora_matmul.arg_specs import ARG_SPECS


@pytest.mark.parametrize("name", ARG_SPECS)
def test_equals_formula(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax_triton, "triton_call", triton_interpreter.triton_call)
    arguments = ARG_SPECS[name].arguments()
    got = lora_matmul(*arguments, body="triton_gpu")
    np.testing.assert_allclose(got, lora_matmul(*arguments, body="base"), atol=1e-5)  # float32 sums in another order.
