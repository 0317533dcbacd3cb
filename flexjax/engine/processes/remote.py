"""An engine that another process leads: requests go there, events come back."""

import dataclasses
import logging
import threading
import time
from typing import Any

from flexjax.engine.device.runner import StepRunner
from flexjax.engine.engine import Engine
from flexjax.engine.limits import check_room
from flexjax.engine.processes.lockstep import Cancel
from flexjax.engine.processes.post import Post
from flexjax.engine.request import Request, TokenEvent
from flexjax.engine.stats import EngineStats
from flexjax.engine.teller import Teller, described

_STOP, _STATS = "stop", "stats"  # Orders beside requests and cancellations.


class Remote:
    """In process 0, the face of an `Engine` whose leader is elsewhere. The same checks hold for `like`, a replica
    that has a part here.

    An event is stamped again as it comes in, by the clock of this process.
    """

    def __init__(self, post: Post, leader: int, box: str, like: Engine):
        self._post, self._leader, self._box, self._like = post, leader, box, like
        self._tellers: dict[str, Teller] = {}
        self._running: dict[str, set[int]] = {}  # Which of a request's continuations have not ended.
        self._changing = threading.Lock()
        self.failure: BaseException | None = None
        self._stopped = threading.Event()
        threading.Thread(target=self._listen, name=f"flexjax-{box}", daemon=True).start()

    def start(self) -> None:
        """It runs since it was loaded."""

    def stop(self) -> None:
        self._send(_STOP)
        self._stopped.wait()

    def submit(self, request: Request) -> None:
        self._like.check(request)
        teller = Teller(request.id, request.listener, lambda error: self._withdraw(request.id, teller))
        with self._changing:
            if self._stopped.is_set():
                raise RuntimeError("The engine was stopped, or its process is gone.") from self.failure
            check_room(self._like.config, sum(map(len, self._running.values())), request.params.n)
            self._tellers[request.id], self._running[request.id] = teller, set(range(request.params.n))
        try:
            self._send(dataclasses.replace(request, listener=None))
        except BaseException:
            with self._changing:
                del self._tellers[request.id], self._running[request.id]
            raise

    def cancel(self, request_id: str) -> None:
        self._send(Cancel(request_id))

    def _withdraw(self, request_id: str, teller: Teller) -> None:
        with self._changing:  # Its id may be taken again by now.
            still_open = self._tellers.get(request_id) is teller
        if still_open:
            self.cancel(request_id)

    def holds(self, request_id: str) -> bool:
        return request_id in self._running

    def step(self) -> bool:
        """Its own process takes its turns; whether anything is open."""
        return bool(self._running)

    @property
    def num_open(self) -> int:
        return len(self._running)

    @property
    def runners(self) -> tuple[StepRunner, ...]:
        """Of a replica that is here, and alike."""
        return self._like.runners

    @property
    def stats(self) -> EngineStats:
        """As they are now over there, in the clock of this process."""
        self._send(_STATS)
        answer = self._post.take(f"{self._box}-stats")
        if answer is None:
            raise RuntimeError("The engine was stopped, or its process is gone.")
        stats, now = answer
        ahead = now - time.perf_counter()
        samples = [dataclasses.replace(sample, time=sample.time - ahead) for sample in stats.samples]
        stats.samples.clear()
        stats.samples.extend(samples)
        return stats

    def _send(self, order: Any) -> None:
        self._post.send(self._leader, self._box, order)

    def _listen(self) -> None:
        while isinstance(event := self._post.take(f"{self._box}-events"), TokenEvent):
            self._tell(event)
        lost = event is None
        gone = "The process that led this replica is gone." if lost else "The engine was stopped."
        with self._changing:  # From here on `submit` refuses, so that nobody slips in behind.
            self._stopped.set()
            left = [(request_id, index) for request_id, open_ in self._running.items() for index in open_]
        for request_id, index in left:
            reason = "error" if lost else "cancelled"
            self._tell(TokenEvent("done", request_id, 0.0, index, finish_reason=reason, error=gone, fatal=lost))

    def _tell(self, event: TokenEvent) -> None:
        with self._changing:
            if event.index not in self._running.get(event.request_id, ()):
                return
            teller = self._tellers[event.request_id]
            if event.kind == "done":
                if event.fatal and self.failure is None:
                    self.failure = RuntimeError(event.error)
                self._running[event.request_id].discard(event.index)
                if not self._running[event.request_id]:
                    del self._tellers[event.request_id], self._running[event.request_id]
        teller(dataclasses.replace(event, time=time.perf_counter()))


def serve(engine: Engine, post: Post, box: str) -> None:
    """The other end of a `Remote`, in the process that leads the engine: obeys until it is told to stop."""
    try:
        _serve(engine, post, box)
    except BaseException:  # Or process 0 would wait for answers for ever.
        logging.exception("The engine cannot be led from another process any more.")
        post.abandon()


def _serve(engine: Engine, post: Post, box: str) -> None:
    def listener(event: TokenEvent) -> None:
        post.send(0, f"{box}-events", event)

    engine.start()
    while (order := post.take(box)) not in (None, _STOP):
        if isinstance(order, Cancel):
            engine.cancel(order.request_id)
        elif order == _STATS:
            post.send(0, f"{box}-stats", (engine.stats.copy(), time.perf_counter()))
        else:
            assert isinstance(order, Request)
            try:
                engine.submit(dataclasses.replace(order, listener=listener))
            except BaseException as error:  # A bad request ends alone; so does one that comes after a failure.
                end = TokenEvent("done", order.id, 0.0, finish_reason="error", error=described(error))
                end = dataclasses.replace(end, fatal=engine.failure is not None)
                for index in range(order.params.n):
                    listener(dataclasses.replace(end, index=index))
    if order is None:
        return
    engine.stop()
    post.send(0, f"{box}-events", _STOP)
