"""Values of the GPU body without a GPU; test_triton_gpu.py runs this file in a process of its own."""

import numpy as np
import pytest
import triton_interpreter

from flexjax.kernels.lora_matmul import lora_matmul
from flexjax.kernels.lora_matmul.arg_specs import ARG_SPECS


@pytest.mark.parametrize("name", ARG_SPECS)
def test_equals_formula(name: str, monkeypatch: pytest.MonkeyPatch):
    ((got, want),) = triton_interpreter.beside_the_formula(monkeypatch, lora_matmul, ARG_SPECS[name])
    np.testing.assert_allclose(got, want, atol=1e-5)  # float32 sums in another order.
