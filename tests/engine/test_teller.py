"""What a request is told, and what it is told no more."""

import logging
import threading

import pytest

from flexjax.engine.request import TokenEvent
from flexjax.engine.teller import Teller, described


class Panic(BaseException):
    """As a Rust panic: no Exception."""


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text")


def token(index: int = 0) -> TokenEvent:
    return TokenEvent("token", "r", 0.0, index, token_ids=(1,))


def done(index: int = 0, reason="length", **fields) -> TokenEvent:
    return TokenEvent("done", "r", 0.0, index, finish_reason=reason, **fields)


@pytest.mark.parametrize("raised", [KeyError("x"), Panic("x"), SystemExit(3), KeyboardInterrupt(), Unprintable()])
def test_a_listener_that_raises_is_told_its_end_and_nothing_else(raised, caplog):
    heard, ended = [], []

    def listener(event):
        heard.append(event)
        if event.kind == "token":
            raise raised

    teller = Teller("r", listener, ended.append)
    for event in (token(0), token(1), done(0, "stop"), done(1, "cancelled")):
        teller(event)
    assert ended == [raised]
    assert [(e.kind, e.index) for e in heard] == [("token", 0), ("done", 0), ("done", 1)]
    assert [e.finish_reason for e in heard[1:]] == ["error"] * 2
    assert all(type(raised).__name__ in e.error and "listener of request 'r' raised" in e.error for e in heard[1:])
    assert "'r' raised" in caplog.text


def test_a_listener_that_always_raises_is_asked_to_end_once(caplog):
    heard, ended = [], []

    def listener(event):
        heard.append(event.kind)
        raise KeyError(event.kind)

    teller = Teller("r", listener, ended.append)
    for event in (token(), token(), done(), done()):
        teller(event)
    assert heard == ["token", "done"] and len(ended) == 1
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 2


def test_done_comes_once_and_last_whichever_thread_tells_it():
    heard: list[TokenEvent] = []
    teller = Teller("r", heard.append)
    begin = threading.Barrier(4)

    def tell():
        begin.wait()
        for _ in range(200):
            teller(token())
        teller(done())

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [e.kind for e in heard].index("done") == len(heard) - 1


def test_a_failure_of_the_engine_is_told_as_such_after_a_fault(caplog):
    heard: list[TokenEvent] = []
    teller = Teller("r", heard.append)
    teller.fail("The tokens could not be made text", Panic("x"))
    teller(done(0, "error", error="The engine failed: y", fatal=True))
    assert [(e.fatal, e.error) for e in heard] == [(True, "The engine failed: y")]


def test_any_error_can_be_described():
    assert described(KeyError("x")) == "KeyError: 'x'"
    assert "Unprintable" in described(Unprintable())
