"""The line of sequences that wait to be admitted."""

import heapq
from collections.abc import Iterator

from flexjax.engine.sequence import Sequence


class WaitingLine:
    """Sequences in order of `key`. To join and to go first take O(log n), to leave from the middle O(1) on average.

    One that leaves from the middle keeps its place in the heap until that comes up or half of the heap is such
    places; so it must not join again.
    """

    def __init__(self):
        self._heap: list[tuple[tuple[int, int, int], Sequence]] = []
        self._members: set[Sequence] = set()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(sorted(self._members, key=lambda s: s.key))

    def add(self, sequence: Sequence) -> None:
        self._members.add(sequence)
        heapq.heappush(self._heap, (sequence.key, sequence))

    @property
    def first(self) -> Sequence:
        """Who goes next; the line must not be empty."""
        while self._heap[0][1] not in self._members:
            heapq.heappop(self._heap)
        return self._heap[0][1]

    def pop(self) -> Sequence:
        """Takes out the first."""
        first = self.first
        heapq.heappop(self._heap)
        self._members.remove(first)
        return first

    def discard(self, sequence: Sequence) -> None:
        """Takes a sequence out if it is in the line."""
        self._members.discard(sequence)
        if len(self._heap) > 2 * len(self._members):
            self._heap = [place for place in self._heap if place[1] in self._members]
            heapq.heapify(self._heap)
