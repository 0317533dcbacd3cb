"""Calls of several processes: whatever ends one is told to all."""

import pickle
from collections import defaultdict

import pytest

from flexjax.engine.processes.meeting import Meeting
from flexjax.refusal import Refusal


class Stubborn(Exception):
    """An error of a library: it can be sent and not be read."""

    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")


class Panic(BaseException):
    """No Exception."""


class Post:
    """What process 0 sees of a job of two, whose other process makes the same call."""

    index, count = 0, 2

    def __init__(self, call: str):
        self.call, self.sent = call, defaultdict(list)

    def take(self, box):
        return self.call

    def send(self, to, box, letter):
        self.sent[box].append(pickle.loads(pickle.dumps(letter)))


@pytest.fixture
def post() -> Post:
    digests = []
    asking = type("Asking", (), {"index": 1, "send": lambda self, to, box, letter: digests.append(letter)})()
    asking.take = lambda box: (None, None)
    Meeting(asking).call("generate", lambda: None)
    return Post(digests[0])


@pytest.mark.parametrize(
    ("raised", "told", "text"),
    [
        (Refusal("Prompt 1 is empty."), Refusal, "Prompt 1 is empty."),
        (Stubborn(7, "lost"), RuntimeError, "Stubborn: 7: lost"),
        (Panic("index"), RuntimeError, "Process 0 was interrupted: .*Panic: index"),
        (KeyboardInterrupt(), RuntimeError, "Process 0 was interrupted: KeyboardInterrupt"),
    ],
)
def test_whatever_ends_the_work_is_told_to_the_others(post, raised, told, text):
    def work():
        raise raised

    with pytest.raises(type(raised)):
        Meeting(post).call("generate", work)
    ((result, error),) = post.sent["answer"]
    assert result is None and type(error) is told
    with pytest.raises(told, match=text):
        raise error
