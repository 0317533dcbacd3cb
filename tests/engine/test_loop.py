"""The engine's thread: whatever kills it, everybody is told."""

import os
import threading
import time

import pytest

from flexjax.engine.loop import Loop


class Panic(BaseException):
    """As a Rust panic: no Exception."""


class Fake:
    """An engine that has news until its turns do what a test wants."""

    def __init__(self, *turns):
        self.turns, self.ends, self.ended = list(turns), [], threading.Event()

    def step(self) -> bool:
        if self.turns and (turn := self.turns.pop(0)):
            turn()
        return bool(self.turns)

    @property
    def has_news(self) -> bool:
        return bool(self.turns)

    def end_all(self, reason, error, *, failure=None) -> None:
        self.ends.append((reason, error, failure))
        self.ended.set()


def failing(error: BaseException):
    def turn():
        raise error

    return turn


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), Panic("index out of bounds"), SystemExit(1)])
def test_whatever_kills_a_turn_ends_everyone_of_every_engine_once(error, caplog):
    first, second = Fake(None, failing(error)), Fake()
    loop = Loop(first, second)
    loop.start()
    assert first.ended.wait(30) and second.ended.wait(30)
    assert first.ends == second.ends and len(first.ends) == 1
    reason, text, failure = first.ends[0]
    assert reason == "error" and str(error) in text and failure is error is loop.failure
    with pytest.raises(RuntimeError, match=f"has failed and takes no requests: .*{error}") as raised:
        loop.check_open()
    assert raised.value.__cause__ is error
    loop.stop()
    loop.start()  # It does not begin again.
    loop.stop()
    assert len(first.ends) == 1


def test_a_fault_while_it_stops_is_a_failure(caplog):
    fake = Fake()
    end_all = fake.end_all
    fake.end_all = lambda reason, *rest, **kw: (
        failing(Panic("pages"))() if reason == "cancelled" else end_all(reason, *rest, **kw)
    )
    loop = Loop(fake)
    loop.start()
    loop.stop()
    assert [reason for reason, *_ in fake.ends] == ["error"]


def test_it_stops_and_starts_again():
    fake = Fake()
    loop = Loop(fake)
    loop.check_open()  # Also before the first start: who calls step() needs no thread.
    for _ in range(2):
        loop.start()
        loop.check_open()
        loop.stop()
        with pytest.raises(RuntimeError, match="was stopped; start"):
            loop.check_open()
    loop.stop()
    assert [reason for reason, *_ in fake.ends] == ["cancelled"] * 2


def test_a_stop_without_a_thread_ends_what_is_open():
    fake = Fake()
    loop = Loop(fake)
    loop.stop()
    assert [reason for reason, *_ in fake.ends] == ["cancelled"]
    with pytest.raises(RuntimeError, match="was stopped; start"):
        loop.check_open()


def test_a_thread_that_hangs_is_failed_from_outside_and_left(monkeypatch, caplog):
    monkeypatch.setattr("flexjax.engine.loop._PATIENCE_SECONDS", 0.05)
    release, fake = threading.Event(), Fake()
    fake.turns = [release.wait]
    loop = Loop(fake)
    loop.start()
    loop.fail(RuntimeError("a process is gone"))
    loop.fail(RuntimeError("later"))
    assert [text for _, text, _ in fake.ends] == ["The engine failed: RuntimeError: a process is gone"]
    began = time.monotonic()
    loop.stop()
    assert time.monotonic() - began < 10
    release.set()


@pytest.mark.parametrize(("call", "who"), [("stop", "stop waits"), ("start", "generate and stream wait")])
def test_its_own_thread_does_not_wait_for_itself(call, who):
    told = threading.Event()

    def wait():
        with pytest.raises(RuntimeError, match=f"{who} for the engine's thread.*in another one"):
            getattr(loop, call)()
        told.set()

    loop = Loop(Fake(wait))
    loop.start()
    assert told.wait(30)
    loop.check_open()
    loop.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_process_is_told_that_it_has_no_thread():
    loop = Loop(Fake())
    loop.start()
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            loop.check_open()
        except RuntimeError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as text:
        assert "was forked" in text.read()
    loop.stop()
