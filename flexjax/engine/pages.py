"""The pools of cache pages: who holds which page is known here and nowhere else."""

import math
from collections.abc import Sequence


class PagePool:
    """Pages 1 … num_pages - 1, each free or held by one owner; page 0 is nobody's.

    Of layers with a window an owner holds `most` pages at a time, and writes over those that lie behind the window.

    Invariant: free and held pages together are exactly those pages, none twice.
    """

    def __init__(self, num_pages: int, page_size: int, most: int | None = None):
        self.page_size, self.most = page_size, most
        self.capacity = num_pages - 1
        self._free = list(range(num_pages - 1, 0, -1))  # A stack: the page given back last is warm, and goes first.

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.capacity - len(self._free)

    @property
    def longest(self) -> float:
        """Tokens that one owner can have."""
        return self.capacity * self.page_size if self.most is None or self.most > self.capacity else math.inf

    def pages_for(self, num_tokens: int) -> int:
        """Pages that an owner of so many tokens holds."""
        pages = -(-num_tokens // self.page_size)
        return pages if self.most is None else min(pages, self.most)

    def missing(self, pages: list[int], num_tokens: int) -> int:
        return max(self.pages_for(num_tokens) - len(pages), 0)

    def take(self, pages: list[int], count: int) -> None:
        """Moves so many free pages, which there are, to `pages`."""
        for _ in range(count):
            pages.append(self._free.pop())

    def release(self, pages: list[int]) -> None:
        """Takes every page back and empties the list, so that nothing can be given back twice."""
        self._free.extend(reversed(pages))
        pages.clear()
        assert len(self._free) <= self.capacity


class PagePools:
    """A pool for each page table: for the layers of each size of window. What an owner holds is a list for each."""

    def __init__(self, pools: Sequence[PagePool]):
        self.pools = tuple(pools)

    @property
    def capacity(self) -> int:
        return sum(pool.capacity for pool in self.pools)

    @property
    def num_used(self) -> int:
        return sum(pool.num_used for pool in self.pools)

    @property
    def longest(self) -> float:
        """Tokens that one owner can have."""
        return min((pool.longest for pool in self.pools), default=math.inf)

    def too_small(self, num_tokens: int) -> PagePool | None:
        """A pool that an owner of so many tokens does not fit."""
        return next((pool for pool in self.pools if pool.pages_for(num_tokens) > pool.capacity), None)

    def grow(self, held: list[list[int]], num_tokens: int) -> bool:
        """Extends `held` until it has room for `num_tokens`; False, with nothing taken, when too few pages are free."""
        had = held or [[] for _ in self.pools]
        missing = [pool.missing(pages, num_tokens) for pool, pages in zip(self.pools, had, strict=True)]
        if any(count > pool.num_free for pool, count in zip(self.pools, missing, strict=True)):
            return False
        held[:] = had
        for pool, pages, count in zip(self.pools, held, missing, strict=True):
            pool.take(pages, count)
        return True

    def release(self, held: list[list[int]]) -> None:
        """Takes every page back and empties the list, so that nothing can be given back twice."""
        for pool, pages in zip(self.pools, held, strict=False):
            pool.release(pages)
        held.clear()
