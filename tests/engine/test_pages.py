"""The pool never hands a page out twice and never loses one."""

from hypothesis import given
from hypothesis import strategies as st

from flexjax.engine.pages import PagePool


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 40)), max_size=60))
def test_free_and_held_pages_partition_the_pool(actions):
    pool = PagePool(num_pages=12, page_size=4)
    held: list[list[int]] = [[] for _ in range(6)]
    for grows, owner, num_tokens in actions:
        before = list(held[owner])
        if grows:
            grown = pool.grow(held[owner], num_tokens)
            fits = pool.pages_for(num_tokens) <= len(before) + pool.num_free + (len(held[owner]) - len(before))
            assert grown == fits
            assert held[owner][: len(before)] == before
            if not grown:
                assert held[owner] == before
        else:
            pool.release(held[owner])
            assert not held[owner]
        everyone = [page for pages in held for page in pages]
        assert len(set(everyone)) == len(everyone) == pool.num_used
        assert 0 not in everyone
        assert pool.num_used + pool.num_free == pool.capacity
