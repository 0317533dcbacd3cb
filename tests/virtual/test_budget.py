from hypothesis import given
from hypothesis import strategies as st

from flexjax.virtual.budget import Budget

VOCAB, D, F, LAYERS, KV_HEADS, HEAD_DIM = 1000, 64, 96, 3, 2, 16


def test_bytes_are_those_of_the_arrays(budget):
    layer = 2 * D * D + 2 * D * KV_HEADS * HEAD_DIM + 3 * D * F + 2 * D
    assert budget.weights == 2 * (2 * VOCAB * D + LAYERS * layer + D)
    assert budget.page == LAYERS * 16 * KV_HEADS * 2 * HEAD_DIM * 2
    assert budget.slot == 4 + VOCAB + 4 * VOCAB  # Last token, in the prompt, counts.
    assert budget.longest == 4096


def test_needed_counts_whole_pages_and_the_one_of_nobody(budget):
    assert budget.cache(batch=2, context=17) == (2 * 2 + 1) * budget.page
    rest = budget.weights + 3 * budget.slot + budget.reserve
    assert budget.needed(batch=2, context=17) == rest + 5 * budget.page


sizes = st.integers(1, 10**6)


@given(weights=sizes, page=sizes, slot=sizes, available=st.integers(1, 10**9), size=st.integers(1, 300))
def test_the_largest_is_the_last_that_fits(weights, page, slot, available, size):
    budget = Budget(weights, page, 16, slot, available, longest=4096, reserve=0)
    batch = budget.largest_batch(size)
    assert batch == 0 or budget.missing(batch, size) <= 0
    assert batch == 2**16 or budget.missing(batch + 1, size) > 0
    context = budget.longest_context(size)
    assert context == 0 or budget.missing(size, context) <= 0
    assert context == 4096 or budget.missing(size, context + 1) > 0


def test_fewer_bits_shrink_weights_and_pages_alone(budget):
    half = budget.scaled(0.5, 0.25)
    assert (half.weights, half.page, half.slot) == (budget.weights / 2, budget.page / 4, budget.slot)
