"""Pages that hold each kv head several times, as a mesh of more devices than kv heads wants them."""

import functools

import jax
import numpy as np
import pytest

from flexjax.kernels.ragged_paged_attention.api import ragged_paged_attention

RNG = np.random.default_rng(0)
T, N, K, H, PAGE = 5, 8, 2, 8, 4
Q = RNG.normal(size=(T, N, H)).astype(np.float32)
KEYS, VALUES = RNG.normal(size=(2, T, K, H)).astype(np.float32)
PAGES = RNG.normal(size=(7, PAGE, K, 2, H)).astype(np.float32)
BATCH = (np.array([0, 3, 4], np.int32), np.array([9, 6], np.int32), np.array([[1, 2, 3], [4, 5, 0]], np.int32))
OPTIONS = dict(scale=0.3, max_query_len=3)


@pytest.mark.parametrize("body", ["base", "xla", "cpu"])
@pytest.mark.parametrize("copies", [2, 4])
def test_copies_of_a_head_change_nothing(body: str, copies: int):
    attend = jax.jit(functools.partial(ragged_paged_attention, **OPTIONS, body=body))
    once, pages = attend(Q, KEYS, VALUES, PAGES, *BATCH)
    out, copied = attend(Q, KEYS, VALUES, np.repeat(PAGES, copies, axis=2), *BATCH)
    np.testing.assert_allclose(out, once, atol=2e-6)
    np.testing.assert_array_equal(copied, np.repeat(pages, copies, axis=2))


@pytest.mark.parametrize("heads", [3, 16])
def test_copies_that_do_not_fit_the_query_heads_are_refused(heads: int):
    pages = np.zeros((7, PAGE, heads, 2, H), np.float32)
    with pytest.raises(ValueError, match=f"multiple of K and divide N; they have {heads}, with K=2, N=8"):
        ragged_paged_attention(Q, KEYS, VALUES, pages, *BATCH, **OPTIONS)
