"""The pool of cache pages: who holds which page is known here and nowhere else."""


class PagePool:
    """Pages 1 … num_pages - 1, each free or held by one owner; page 0 is nobody's.

    Invariant: free and held pages together are exactly those pages, none twice.
    """

    def __init__(self, num_pages: int, page_size: int):
        self.page_size = page_size
        self.capacity = num_pages - 1
        self._free = list(range(num_pages - 1, 0, -1))  # A stack: the page given back last is warm, and goes first.

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.capacity - len(self._free)

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def grow(self, pages: list[int], num_tokens: int) -> bool:
        """Extends `pages` until it holds `num_tokens`; False, with nothing taken, when too few are free."""
        missing = self.pages_for(num_tokens) - len(pages)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            pages.append(self._free.pop())
        return True

    def release(self, pages: list[int]) -> None:
        """Takes every page back and empties the list, so that nothing can be given back twice."""
        self._free.extend(reversed(pages))
        pages.clear()
        assert len(self._free) <= self.capacity
