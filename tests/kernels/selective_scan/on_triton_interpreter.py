"""Values of the GPU body without a GPU; test_triton_gpu.py runs this file in a process of its own."""

import numpy as np
import pytest
import triton_interpreter

from flexjax.kernels.selective_scan import selective_scan
from flexjax.kernels.selective_scan.arg_specs import ARG_SPECS

# The interpreter scans element by element; this one has rows alone, chunks, padding and a state to go on from.
NAMES = ["odd_sizes"]


@pytest.mark.parametrize("name", NAMES)
def test_equals_formula(name: str, monkeypatch: pytest.MonkeyPatch):
    for got, want in triton_interpreter.beside_the_formula(monkeypatch, selective_scan, ARG_SPECS[name]):
        np.testing.assert_allclose(got, want, atol=2e-5)  # float32 sums in another order.
