"""An engine that another process leads: requests go there, events come back."""

import dataclasses
import logging
import threading
import time
from typing import Any

from flexjax.engine.engine import Engine
from flexjax.engine.lockstep import Cancel
from flexjax.engine.post import Post
from flexjax.engine.request import Request, TokenEvent
from flexjax.engine.runner import StepRunner
from flexjax.engine.stats import EngineStats

_STOP, _STATS = "stop", "stats"  # Orders beside requests and cancellations.


class Remote:
    """In process 0, the face of an `Engine` whose leader is elsewhere. The same checks hold for `like`, a replica
    that has a part here.

    An event is stamped again as it comes in, by the clock of this process.
    """

    def __init__(self, post: Post, leader: int, box: str, like: Engine):
        self._post, self._leader, self._box, self._like = post, leader, box, like
        self._open: dict[str, Request] = {}
        self._running: dict[str, set[int]] = {}  # Which of a request's continuations have not ended.
        self._changing = threading.Lock()
        self.failed = False
        self._stopped = threading.Event()
        threading.Thread(target=self._listen, name=f"flexjax-{box}", daemon=True).start()

    def start(self) -> None:
        """It runs since it was loaded."""

    def stop(self) -> None:
        self._send(_STOP)
        self._stopped.wait()

    def submit(self, request: Request) -> None:
        self._like.check(request)
        if self._stopped.is_set():
            raise RuntimeError("The engine was stopped, or its process is gone.")
        with self._changing:
            self._open[request.id], self._running[request.id] = request, set(range(request.params.n))
        self._send(dataclasses.replace(request, listener=None))

    def cancel(self, request_id: str) -> None:
        self._send(Cancel(request_id))

    def holds(self, request_id: str) -> bool:
        return request_id in self._open

    def step(self) -> bool:
        """Its own process takes its turns; whether anything is open."""
        return bool(self._open)

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def runner(self) -> StepRunner:
        """Of a replica that is here, and alike."""
        return self._like.runner

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
        self._stopped.set()
        gone = "The process that led this replica is gone." if event is None else "The engine was stopped."
        for request in list(self._open.values()):
            reason = "error" if event is None else "cancelled"
            for index in range(request.params.n):
                self._tell(TokenEvent("done", request.id, 0.0, index, finish_reason=reason, error=gone))

    def _tell(self, event: TokenEvent) -> None:
        with self._changing:
            request = self._open.get(event.request_id)
            if request is None or event.index not in self._running[event.request_id]:
                return
            if event.kind == "done":
                self.failed |= event.finish_reason == "error"  # Nothing but the engine's own failure ends one so.
                self._running[event.request_id].discard(event.index)
                if not self._running[event.request_id]:
                    del self._open[event.request_id], self._running[event.request_id]
        if request.listener is None:
            return
        try:
            request.listener(dataclasses.replace(event, time=time.perf_counter()))
        except Exception:
            logging.exception("The listener of request %r raised; the request is cancelled.", request.id)
            with self._changing:
                if request.id in self._open:
                    self._open[request.id] = dataclasses.replace(request, listener=None)
            self.cancel(request.id)


def serve(engine: Engine, post: Post, box: str) -> None:
    """The other end of a `Remote`, in the process that leads the engine: obeys until it is told to stop."""

    def listener(event: TokenEvent) -> None:
        post.send(0, f"{box}-events", event)

    engine.start()
    while (order := post.take(box)) not in (None, _STOP):
        if isinstance(order, Cancel):
            engine.cancel(order.request_id)
        elif order == _STATS:
            post.send(0, f"{box}-stats", (engine.stats, time.perf_counter()))
        else:
            assert isinstance(order, Request)
            try:
                engine.submit(dataclasses.replace(order, listener=listener))
            except RuntimeError as error:  # It has failed.
                for index in range(order.params.n):
                    listener(TokenEvent("done", order.id, 0.0, index, finish_reason="error", error=str(error)))
    if order is None:
        return
    engine.stop()
    post.send(0, f"{box}-events", _STOP)
