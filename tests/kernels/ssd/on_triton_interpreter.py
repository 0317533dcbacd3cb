"""Values of the GPU body without a GPU; test_triton_gpu.py runs this file in a process of its own."""

import numpy as np
import pytest
import triton_interpreter

from flexjax.kernels.ssd import ssd
from flexjax.kernels.ssd.arg_specs import ARG_SPECS

# In bfloat16 and float32, each over two chunks; the others take many seconds.
NAMES = ["groups", "odd_sizes"]


@pytest.mark.parametrize("name", NAMES)
def test_equals_formula(name: str, monkeypatch: pytest.MonkeyPatch):
    spec = ARG_SPECS[name]
    for got, want in triton_interpreter.beside_the_formula(monkeypatch, ssd, spec):
        # float32: sums in another order. bfloat16: factors are rounded to its 8 bits, and results.
        unit = 2**-8 if spec.dtype == "bfloat16" else 2e-6
        np.testing.assert_allclose(got, want, atol=unit * np.abs(want).max(), rtol=unit)
