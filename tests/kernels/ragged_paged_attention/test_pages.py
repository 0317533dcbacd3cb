"""What pages make of keys and values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.kernels.ragged_paged_attention.pages import (
    LARGEST,
    Int4Pages,
    ScaledPages,
    encoded,
    in_units,
    int4_encoded,
    num_clipped,
    numbers_per_token,
    one_pool,
    put_back,
    read,
    rescaled,
    written,
)

RNG = np.random.default_rng(0)
K_V = RNG.normal(size=(2, 40, 3, 16)).astype(np.float32) * np.exp(RNG.normal(size=(2, 40, 3, 1))).astype(np.float32)


def there_and_back(pages, unit=1.0, kv=K_V):
    """What 40 tokens of two sequences, strewn over pages of eight, are read as; written and read in that unit."""
    tokens = np.arange(40)
    table = np.array([[4, 1, 5, 2, 3]], np.int32)
    pages = written(
        pages,
        *(in_unit(jnp.asarray(x), unit, pages) for x in kv),
        jnp.asarray(table[0][tokens // 8]),
        jnp.asarray(tokens % 8),
    )
    return np.stack([x[0] for x in read(pages, jnp.asarray(table))]) * unit


def in_unit(x, unit, pages):
    if isinstance(pages, Int4Pages):
        return x
    live = jnp.ones(len(x), bool)
    return in_units(x, jnp.full(x.shape[1:], unit), LARGEST[pages.dtype.name], live)[0]


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


@pytest.mark.parametrize(("dtype", "largest"), LARGEST.items())
def test_what_is_too_large_is_the_largest_and_never_nan_and_is_counted(dtype: str, largest: float):
    x = jnp.asarray([[[1e30, 1000.0, largest, -1000.0]], [[-1e30, 1.0, np.nan, -largest]], [[1e30] * 4]])
    y, beyond = in_units(x, jnp.ones((1, 4)), largest, jnp.asarray([True, True, False]))  # The last is padding.
    assert beyond.tolist() == [4]
    kept = np.asarray(encoded(y, dtype), np.float32)[:2, 0]
    assert kept[0].tolist() == [largest, largest, largest, -largest]
    assert kept[1, :2].tolist() == [-largest, 1.0] and kept[1, 3] == -largest


def stacked_cache(layers: int, heads: int) -> ScaledPages:
    rng = np.random.default_rng(1)
    return ScaledPages(
        jnp.asarray(rng.integers(-9, 9, (layers, 5, 4, 2 * heads, 8)), jnp.int8),
        jnp.asarray(rng.integers(1, 9, (layers, heads, 2, 8)), jnp.float32),
        jnp.asarray(rng.integers(0, 9, (layers, heads, 2)), jnp.uint32),
    )


def test_one_layer_of_stacked_pages_is_changed_and_no_other():
    stacked = stacked_cache(3, 2)
    pool, num_pages = one_pool(stacked, jnp.int32(1))
    assert num_pages == 5 and pool.values.shape == (15, 4, 2, 2, 8)
    np.testing.assert_array_equal(pool.scales, stacked.scales[1])
    back = put_back(dataclasses.replace(pool, clipped=pool.clipped + 7), stacked, jnp.int32(1))
    np.testing.assert_array_equal(back.values, stacked.values)
    more = np.asarray(back.clipped - stacked.clipped)
    assert (more[1] == 7).all() and not more[[0, 2]].any()


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("stacked", [False, True])
def test_scales_are_those_of_each_layer_and_head_and_numbers_are_counted_over_all(stacked: bool, copies: int):
    layers = [ScaledPages(*(x[i] for x in jax.tree.leaves(stacked_cache(3, 2 * copies)))) for i in range(3)]
    cache = [stacked_cache(3, 2 * copies)] if stacked else layers
    scales = jnp.exp2(jnp.arange(3 * 2 * 2 * 8).reshape(3, 2, 2, 8) % 11)
    leaves = rescaled(cache, [scales] if stacked else list(scales))
    for layer in range(3):
        own = leaves[0].scales[layer] if stacked else leaves[layer].scales
        np.testing.assert_array_equal(own, np.repeat(scales[layer], copies, axis=0))
    assert num_clipped(cache) == sum(pages.clipped.sum() for pages in layers)
    assert numbers_per_token(cache) == 3 * 2 * copies * 2 * 8
    assert num_clipped([jnp.zeros((2, 3))]) is None and numbers_per_token([jnp.zeros((2, 3))]) == 0
