"""Values of the GPU body without a GPU; test_triton_gpu.py runs this file in a process of its own."""

import numpy as np
import pytest
import triton_interpreter

from flexjax.kernels.short_convolution import short_convolution
from flexjax.kernels.short_convolution.arg_specs import ARG_SPECS

# All but the wide ones, which take seconds each.
NAMES = ["registers", "short_rows", "one_fresh_row", "width_2"]


@pytest.mark.parametrize("name", NAMES)
def test_equals_formula(name: str, monkeypatch: pytest.MonkeyPatch):
    for got, want in triton_interpreter.beside_the_formula(monkeypatch, short_convolution, ARG_SPECS[name]):
        np.testing.assert_allclose(got, want, atol=1e-5)  # float32 sums in another order.
