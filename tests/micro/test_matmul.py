import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.micro import matmul, matmuls


def test_each_dtype_and_size_is_probed_for_its_operations():
    probes = list(matmuls(["float32", "int8"], [8, 16]))
    assert [(p.name, p.kind, p.work) for p in probes] == [
        ("float32 8", "float32", 1024),
        ("float32 16", "float32", 8192),
        ("int8 8", "int8", 1024),
        ("int8 16", "int8", 8192),
    ]
    assert all(p.run(2) > 0 for p in probes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_many_products_on_values_neither_overflow_nor_die(dtype):
    x, w = matmul._factors(64, jnp.dtype(dtype))
    assert x.dtype == w.dtype == jnp.dtype(dtype)
    for _ in range(30):
        x = matmul._product(x, w)
    values = np.asarray(x, np.float32)
    assert np.isfinite(values).all()
    assert 0.05 < np.abs(values).mean() < 127


def test_integers_are_multiplied_exactly():
    x, w = matmul._factors(32, jnp.int8)
    want = np.asarray(x, np.int64) @ np.asarray(w, np.int64) >> 8
    np.testing.assert_array_equal(matmul._product(x, w), want.astype(np.int8))
