"""Values of the GPU body without a GPU; test_triton_gpu.py runs this file in a process of its own."""

import numpy as np
import pytest
import triton_interpreter

from flexjax.kernels.matmul import matmul, triton_gpu
from flexjax.kernels.matmul.arg_specs import ARG_SPECS, INT4, INT8

SMALL = ("int8_float32_rows", "int8_odd_sizes", "int8_rows_odd_sizes", "int4_float32_rows", "int4_odd_sizes")
SPECS = {
    **{name: ARG_SPECS[name] for name in (*SMALL, "float8_decode_16")},
    "int8_prefill": INT8(70, 288, 96),
    "int8_in_parts": INT8(5, 1100, 40),
    "int4_prefill": INT4(70, 96, 80),
    "int4_in_parts": INT4(5, 1120, 40),
    "int4_int8_rows": INT4(4, 96, 72, activation_dtype="int8"),
}


@pytest.mark.parametrize("name", SPECS)
def test_equals_formula(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_gpu, "_capability", lambda: (9, 0))
    spec = SPECS[name]
    if spec.weight_dtype == "int4" and spec.F % 2:
        with pytest.raises(NotImplementedError, match="int4 are read in pairs; F=37 is odd"):
            matmul(*spec.arguments(), body="triton_gpu", **spec.options)
        return
    ((got, want),) = triton_interpreter.beside_the_formula(monkeypatch, matmul, spec)
    np.testing.assert_allclose(got, want, atol=2e-6 * spec.D**0.5)  # float32 sums of unit size in another order.
