"""The pools never hand a page out twice and never lose one."""

from hypothesis import given
from hypothesis import strategies as st

from flexjax.engine.pages import PagePool, PagePools


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 40)), max_size=60),
    st.lists(st.sampled_from([None, 1, 3]), max_size=3),
)
def test_free_and_held_pages_partition_the_pool(actions, bounds):
    pools = PagePools([PagePool(num_pages=12, page_size=4, most=most) for most in bounds])
    held: list[list[list[int]]] = [[] for _ in range(6)]
    for grows, owner, num_tokens in actions:
        before = [list(pages) for pages in held[owner]] or [[] for _ in bounds]
        if grows:
            grown = pools.grow(held[owner], num_tokens)
            fits = all(
                pool.pages_for(num_tokens) <= len(old) + pool.num_free + len(now) - len(old)
                for pool, old, now in zip(pools.pools, before, held[owner] or before, strict=True)
            )
            assert grown == fits
            after = held[owner] or [[] for _ in bounds]
            for pool, old, now in zip(pools.pools, before, after, strict=True):
                assert now[: len(old)] == old
                if grown:
                    assert len(now) == max(len(old), pool.pages_for(num_tokens))
                else:
                    assert now == old
        else:
            pools.release(held[owner])
            assert not held[owner]
        for table, pool in enumerate(pools.pools):
            everyone = [page for tables in held if tables for page in tables[table]]
            assert len(set(everyone)) == len(everyone) == pool.num_used
            assert 0 not in everyone
            assert pool.num_used + pool.num_free == pool.capacity


def test_an_owner_holds_a_window_and_no_more():
    pool = PagePool(num_pages=10, page_size=4, most=3)
    assert [pool.pages_for(n) for n in (1, 4, 5, 12, 13, 10**6)] == [1, 1, 2, 3, 3, 3]
    assert PagePools([pool]).too_small(10**6) is None
    assert PagePools([pool, PagePool(5, 4)]).too_small(17) is not None
