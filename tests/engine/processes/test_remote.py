"""An engine behind the post: both ends in this process, with boxes in place of lines."""

import dataclasses
import threading
import time
from collections import defaultdict
from queue import SimpleQueue

import pytest

from flexjax.engine import Engine, EngineConfig, QueueFull, Request, SamplingParams, TokenEvent
from flexjax.engine.processes.remote import Remote, serve

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

    def abandon(self):
        for box in ("box", "box-events", "box-stats"):
            self.send(0, box, None)


class Log:
    def __init__(self, of: int = 1):
        self.events: list[TokenEvent] = []
        self.ended = threading.Event()
        self.open = of

    def __call__(self, event: TokenEvent) -> None:
        self.events.append(event)
        if event.kind == "done":
            self.open -= 1
            if self.open <= 0:
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


def test_a_listener_that_raises_is_told_the_end(remote, caplog):
    log = Log()

    def broken(event):
        log(event)
        if event.kind != "done":
            raise SystemExit("broken listener")

    remote.submit(Request("bad", (1, 2), LONG, listener=broken))
    assert log.ended.wait(30)
    assert [event.kind for event in log.events] == ["scheduled", "done"]
    end = log.events[-1]
    assert (end.finish_reason, end.fatal) == ("error", False) and "SystemExit: broken listener" in end.error
    assert remote.num_open == 0 and remote.failure is None


@pytest.mark.parametrize("error", [ValueError("no room"), SystemExit("a panic")])
def test_what_is_refused_there_ends_alone(remote, there, monkeypatch, error):
    def refuse(request):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(there, "submit", refuse)
        log = Log(of=2)
        remote.submit(Request("bad", (1, 2), SamplingParams(n=2), listener=log))
        assert log.ended.wait(30)
    assert [(e.index, e.finish_reason, e.fatal) for e in log.events] == [(0, "error", False), (1, "error", False)]
    assert str(error) in log.events[0].error and remote.failure is None
    log = Log()
    remote.submit(Request("good", (1, 2), SamplingParams(max_tokens=3), listener=log))
    assert log.ended.wait(30) and log.events[-1].finish_reason == "length"


def test_priority_seed_and_bound_hold_on_both_sides(tiny_model):
    there, post, log = Engine(tiny_model, None, dataclasses.replace(CONFIG, max_waiting=1)), Boxes(), Log()
    remote = Remote(post, leader=1, box="box", like=there)
    remote.submit(Request("a", (1, 2), SamplingParams(max_tokens=3, n=2), priority=3, listener=log))
    order = post.take("box")
    assert isinstance(order, Request) and (order.priority, order.listener) == (3, None)
    with pytest.raises(QueueFull, match="= 3 sequences .* 2 are, and this request has 2 more"):
        remote.submit(Request("b", (1, 2), SamplingParams(n=2)))
    assert remote.num_open == 1
    thread = threading.Thread(target=serve, args=(there, post, "box"), daemon=True)
    post.send(1, "box", order)
    thread.start()
    assert log.ended.wait(30)
    assert {e.seed is None for e in log.events if e.kind == "done"} == {False}
    remote.stop()


def test_an_end_that_cannot_obey_leaves_nobody_waiting(tiny_model, monkeypatch, caplog):
    there, post, log = Engine(tiny_model, None, CONFIG), Boxes(), Log()
    remote = Remote(post, leader=1, box="box", like=there)
    thread = threading.Thread(target=serve, args=(there, post, "box"), daemon=True)
    thread.start()
    remote.submit(Request("a", (1, 2), LONG, listener=log))
    monkeypatch.setattr(there, "cancel", lambda request_id: 1 / 0)
    monkeypatch.setattr(there.runner, "run", lambda plan, run=there.runner.run: time.sleep(0.02) or run(plan))
    remote.cancel("a")
    assert log.ended.wait(30)
    assert log.events[-1].fatal and remote.failure is not None
    with pytest.raises(RuntimeError, match="its process is gone"):
        remote.submit(Request("b", (1, 2), LONG))
    remote.stop()
    there.stop()


def test_counts_can_be_sent_while_steps_are_counted(there):
    there.stats.samples.extend(range(10))
    copy = there.stats.copy()
    there.stats.samples.append(10)
    assert list(copy.samples) == list(range(10)) and copy.samples.maxlen == there.stats.samples.maxlen


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
