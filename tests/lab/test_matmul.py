import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.kernels.matmul import cpu, packs
from flexjax.lab import matmul, matmuls


def test_each_dtype_and_size_is_probed_for_its_operations():
    probes = list(matmuls(["float32", "int8"], [8, 16], rows=4))
    own = ("", "packed ") if packs("float32") else ("",)
    assert [(p.name, p.kind, p.work) for p in probes] == [
        (f"{body}{dtype} {n}", dtype, 8 * n * n) for dtype in ("float32", "int8") for n in (8, 16) for body in own
    ]
    assert all(p.run(2) > 0 for p in probes)
    (square, *_) = matmuls(["float32"], [16])
    assert square.work == 8192


@pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_packed_product_is_the_product(dtype):
    x, w = matmul._factors(6, 64, jnp.dtype(dtype))
    got = np.asarray(matmul._packed(x, w)._state, np.float32)
    want = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    scale = np.std(np.asarray(w, np.float32)) * 8 if dtype == "int8" else 1
    np.testing.assert_allclose(got, want / scale, atol=2e-2 * np.abs(want / scale).max())  # Rounded to bfloat16.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_many_products_on_values_neither_overflow_nor_die(dtype):
    x, w = matmul._factors(64, 64, jnp.dtype(dtype))
    assert x.dtype == w.dtype == jnp.dtype(dtype)
    for _ in range(30):
        x = matmul._product(x, w)
    values = np.asarray(x, np.float32)
    assert np.isfinite(values).all()
    assert 0.05 < np.abs(values).mean() < 127


def test_integers_are_multiplied_exactly():
    x, w = matmul._factors(32, 32, jnp.int8)
    want = np.asarray(x, np.int64) @ np.asarray(w, np.int64) >> 8
    np.testing.assert_array_equal(matmul._product(x, w), want.astype(np.int8))
