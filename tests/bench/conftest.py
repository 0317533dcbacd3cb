"""A target that needs no model: a thread that hands out numbers, and breaks promises when asked to."""

import dataclasses
import queue
import threading
import time

import pytest

from flexjax.bench.result import StartUp, StatsSample
from flexjax.bench.target import TargetStats
from flexjax.bench.workload import Item
from flexjax.engine.request import Request, SamplingParams, TokenEvent


@dataclasses.dataclass
class Faults:
    drop_token: bool = False  # Every answer is one token short.
    no_scheduled: bool = False
    done_twice: bool = False
    never_done: bool = False  # From the third request on.
    fail: bool = False  # The third request ends in an error.
    refuse: bool = False  # The third request is refused at the door.
    no_tokens: bool = False  # The third request ends well without a token.


class FakeTarget:
    def __init__(self, name: str = "fake", seconds_per_token: float = 1e-4, **faults: bool):
        self.name = name
        self.faults = Faults(**faults)
        self.seconds_per_token = seconds_per_token
        self.seen: list[Request] = []
        self._queue: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._samples: list[StatsSample] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> StartUp:
        self._thread.start()
        return StartUp(load_s=0.25, compile_s=0.5)

    def submit(self, request: Request) -> None:
        self.seen.append(request)
        if self.faults.refuse and len(self.seen) == 3:
            raise ValueError("the third is not welcome")
        self._queue.put(request)

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def describe(self) -> dict:
        return {"software": "fake"}

    def stats(self) -> TargetStats:
        return TargetStats(tuple(self._samples), len(self._samples))

    def _serve(self) -> None:
        served = 0
        while (request := self._queue.get()) is not None:
            served += 1
            third = served == 3
            tell = lambda kind, r=request, **fields: r.listener(TokenEvent(kind, r.id, time.perf_counter(), **fields))
            if not self.faults.no_scheduled:
                tell("scheduled")
            self._samples.append(StatsSample(time.perf_counter(), 1, self._queue.qsize(), 0.5))
            count = request.params.max_tokens - self.faults.drop_token
            for i in range(0 if self.faults.no_tokens and third else count):
                time.sleep(self.seconds_per_token)
                tell("token", token_ids=(i,))
            if self.faults.never_done and served >= 3:
                continue
            if self.faults.fail and third:
                tell("done", finish_reason="error", error="out of luck")
            else:
                tell("done", finish_reason="length")
            if self.faults.done_twice:
                tell("done", finish_reason="length")


@pytest.fixture
def fake_target():
    """A factory of started fake targets; they are stopped after the test."""
    started = []

    def make(name: str = "fake", **options) -> FakeTarget:
        target = FakeTarget(name, **options)
        target.start()
        started.append(target)
        return target

    yield make
    for target in started:
        target.stop()


@pytest.fixture
def items() -> tuple[Item, ...]:
    """Sixteen prompts of 1..16 tokens with answers of 2..5."""
    return tuple(
        Item(tuple(range(1, n + 2)), SamplingParams(temperature=0, max_tokens=2 + n % 4, ignore_eos=True))
        for n in range(16)
    )
