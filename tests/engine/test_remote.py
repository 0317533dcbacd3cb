"""An engine behind the post: both ends in this process, with boxes in place of lines."""

import threading
from collections import defaultdict
from queue import SimpleQueue

import pytest

from flexjax.engine import Engine, EngineConfig, Request, SamplingParams, TokenEvent
from flexjax.engine.remote import Remote, serve

CONFIG = EngineConfig(dtype="float32", max_num_seqs=2, max_num_batched_tokens=32, page_size=4, num_pages=60)
LONG = SamplingParams(temperature=0, max_tokens=90)


class Boxes:
    """A `Post` of one process."""

    def __init__(self):
        self.letters = defaultdict(SimpleQueue)

    def send(self, to, box, letter):
        self.letters[box].put(letter)

    def take(self, box):
        return self.letters[box].get()


class Log:
    def __init__(self):
        self.events: list[TokenEvent] = []
        self.ended = threading.Event()

    def __call__(self, event: TokenEvent) -> None:
        self.events.append(event)
        if event.kind == "done":
            self.ended.set()

    @property
    def tokens(self) -> list[int]:
        return [t for event in self.events for t in event.token_ids]


@pytest.fixture
def there(tiny_model) -> Engine:
    return Engine(tiny_model, None, CONFIG)


@pytest.fixture
def remote(there):
    post = Boxes()
    thread = threading.Thread(target=serve, args=(there, post, "box"), daemon=True)
    thread.start()
    remote = Remote(post, leader=1, box="box", like=there)
    yield remote
    remote.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_a_request_goes_there_and_its_events_come_back(remote, there):
    log = Log()
    remote.submit(Request("a", (1, 2, 3), SamplingParams(temperature=0, max_tokens=6), listener=log))
    assert log.ended.wait(30)
    assert [event.kind for event in log.events][:: len(log.events) - 1] == ["scheduled", "done"]
    assert len(log.tokens) == 6 == remote.stats.output_tokens
    times = [event.time for event in log.events]
    assert times == sorted(times)
    assert remote.num_open == there.num_open == 0


def test_a_bad_request_is_refused_here(remote):
    with pytest.raises(ValueError, match="at least one token"):
        remote.submit(Request("a", (), LONG))
    assert remote.num_open == 0


def test_a_listener_that_raises_loses_its_own_request_only(remote, there, caplog):
    def broken(event):
        raise KeyError("broken listener")

    log = Log()
    remote.submit(Request("bad", (1, 2), LONG, listener=broken))
    remote.submit(Request("good", (1, 2, 3), SamplingParams(temperature=0, max_tokens=6), listener=log))
    assert log.ended.wait(30)
    assert len(log.tokens) == 6 and remote.failure is None
    assert "'bad' raised" in caplog.text


def test_what_is_open_at_the_end_is_told(tiny_model):
    there, post, log = Engine(tiny_model, None, CONFIG), Boxes(), Log()
    remote = Remote(post, leader=1, box="box", like=there)
    remote.submit(Request("a", (1, 2), LONG, listener=log))
    post.send(0, "box-events", None)  # Its process is gone.
    assert log.ended.wait(30)
    assert log.events[-1].finish_reason == "error" and "is gone" in log.events[-1].error
    with pytest.raises(RuntimeError, match="its process is gone"):
        remote.submit(Request("b", (1, 2), LONG))


def test_a_failure_there_is_an_error_here(remote, there, monkeypatch, caplog):
    def fail(plan):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(there.runner, "run", fail)
    for name in "ab":  # In flight when it fails, and after.
        log = Log()
        remote.submit(Request(name, (1, 2), LONG, listener=log))
        assert log.ended.wait(30)
        assert log.events[-1].finish_reason == "error" and "failed" in log.events[-1].error
    assert isinstance(remote.failure, RuntimeError)
