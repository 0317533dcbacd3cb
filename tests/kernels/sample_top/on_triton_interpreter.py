"""Values of the GPU body without a GPU; test_triton_gpu.py runs this file in a process of its own."""

import numpy as np
import pytest
import triton_interpreter

from flexjax.kernels.sample_top import sample_top, triton_gpu
from flexjax.kernels.sample_top.arg_specs import ARG_SPECS


@pytest.mark.parametrize("name", ["one_row", "each_rule", "equal_logits", "odd_vocabulary"])
def test_equals_formula(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_gpu, "BLOCK", 512)
    ((got, want),) = triton_interpreter.beside_the_formula(monkeypatch, sample_top, ARG_SPECS[name])
    np.testing.assert_allclose(got, want, rtol=1e-6)  # The floor is a logarithm and a sum.
