"""The waiting line: in order, and cheap to leave."""

import random

from flexjax.engine.request import Request, SamplingParams
from flexjax.engine.sequence import Sequence
from flexjax.engine.text import TextStream
from flexjax.engine.waiting import WaitingLine


class Counted(Sequence):
    """Counts how often it is compared with another, as a search through a list does."""

    compared = 0

    def __eq__(self, other):
        Counted.compared += 1
        return self is other

    __hash__ = object.__hash__


def make_sequence(arrival: int, priority: int = 0) -> Sequence:
    request = Request(f"r{arrival}", (1,), SamplingParams(), priority=priority)
    return Counted(request, 0, arrival, 0, 1, frozenset(), TextStream(None), [1])


def test_lower_priority_values_and_earlier_arrivals_go_first():
    line = WaitingLine()
    for arrival, priority in enumerate([1, 0, 1, -3, 0]):
        line.add(make_sequence(arrival, priority))
    order = [3, 1, 4, 0, 2]
    assert [s.arrival for s in line] == order and len(line) == 5
    assert [line.pop().arrival for _ in order] == order and not line


def test_whoever_leaves_from_the_middle_is_not_seen_again():
    rng, line = random.Random(0), WaitingLine()
    inside: list[Sequence] = []
    for arrival in range(2000):
        inside.append(make_sequence(arrival, rng.randrange(3)))
        line.add(inside[-1])
        if rng.random() < 0.4:
            line.discard(inside.pop(rng.randrange(len(inside))))
        if rng.random() < 0.3:
            first = min(inside, key=lambda s: s.key)
            assert line.first is first and line.pop() is first
            inside.remove(first)
        assert len(line) == len(inside)
    line.discard(make_sequence(-1))  # A stranger is not in the line.
    assert list(line) == sorted(inside, key=lambda s: s.key)


def test_to_leave_searches_through_nobody_and_gives_the_place_back():
    line, everyone = WaitingLine(), [make_sequence(i) for i in range(10_000)]
    for sequence in everyone:
        line.add(sequence)
    Counted.compared = 0
    for i, sequence in enumerate(reversed(everyone), start=1):
        line.discard(sequence)
        assert len(line._heap) <= 2 * (len(everyone) - i)
    assert Counted.compared == 0 and not line
