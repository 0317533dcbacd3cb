"""What pages make of keys and values."""

import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.kernels.ragged_paged_attention.pages import Int4Pages, encoded, int4_encoded, read, written

RNG = np.random.default_rng(0)
K_V = RNG.normal(size=(2, 40, 3, 16)).astype(np.float32) * np.exp(RNG.normal(size=(2, 40, 3, 1))).astype(np.float32)


def there_and_back(pages, kv_scale=None, kv=K_V):
    """What 40 tokens of two sequences, strewn over pages of eight, are read as."""
    tokens = np.arange(40)
    table = np.array([[4, 1, 5, 2, 3]], np.int32)
    pages = written(pages, *map(jnp.asarray, kv), jnp.asarray(table[0][tokens // 8]), jnp.asarray(tokens % 8), kv_scale)
    return np.stack([x[0] for x in read(pages, jnp.asarray(table), kv_scale)])


def empty_int4():
    return Int4Pages(jnp.zeros((6, 3, 8, 16), jnp.int8), jnp.full((6, 6, 8), jnp.nan, jnp.bfloat16))


def test_int4_is_within_half_a_step_of_what_was_written():
    step = np.abs(K_V).max(-1, keepdims=True) / 7
    error = np.abs(there_and_back(empty_int4()) - K_V)
    assert (error <= step / 2 * (1 + 2**-7)).all()  # The step is kept in eight bits.
    assert (error.max(-1) > 0.25 * step[..., 0]).mean() > 0.9


def test_int4_of_zeros_and_of_what_is_tiny_is_finite():
    for x in (0.0, 1e-44, -1e-37):
        got = there_and_back(empty_int4(), kv=np.full_like(K_V, x))
        np.testing.assert_allclose(got, x, atol=1e-37)


def test_int4_rounds_halves_to_even():
    x = jnp.asarray([[[7.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -7.0]]])
    values, scales = int4_encoded(x, jnp.zeros_like(x))
    assert np.asarray(((values << 4) >> 4)[0, 0]).tolist() == [7, 0, 2, 2, 0, -2, -2, -7]
    assert np.asarray(scales, np.float32).tolist() == [[1.0, 0.0]]


def test_int8_is_within_half_a_step_of_what_is_not_clipped():
    got = there_and_back(jnp.zeros((6, 8, 3, 2, 16), jnp.int8), 1 / 32)
    assert (np.abs(got - K_V.clip(-127 / 32, 127 / 32)) <= 1 / 64).all()


def test_float8_keeps_three_bits_of_mantissa():
    got = there_and_back(jnp.zeros((6, 8, 3, 2, 16), jnp.float8_e4m3fn), 1 / 4)
    # Below 2 ** -6 of the scale steps are even.
    assert (np.abs(got - K_V) <= np.maximum(np.abs(K_V) / 16, 2**-10 / 4)).all()


@pytest.mark.parametrize(("dtype", "largest"), [("int8", 127), ("float8_e4m3fn", 448)])
def test_what_is_too_large_is_the_largest_and_never_nan(dtype: str, largest: float):
    x = jnp.asarray([1e30, 1000.0, -1000.0, -1e30])
    assert np.asarray(encoded(x, dtype, 1.0), np.float32).tolist() == [largest, largest, -largest, -largest]
