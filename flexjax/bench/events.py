"""Listens to a run's requests and keeps what happened to each, cheaply: this runs on the target's thread."""

import dataclasses
import threading
from collections.abc import Callable, Mapping

from flexjax.bench.result import LoadedAnswer, RequestTimeline
from flexjax.bench.workload import Item
from flexjax.engine import Request, TokenEvent

Notify = Callable[["RequestLog"], None]


def _ignore(log: "RequestLog") -> None: ...


@dataclasses.dataclass(slots=True, eq=False)
class RequestLog:
    """One request's events as they come. It is the request's listener."""

    id: str
    item_index: int  # Into the workload.
    item: Item
    on_first_token: Notify
    on_done: Notify
    issued: float = 0.0  # When the load generator handed it to us; `time.perf_counter()` like all here.
    scheduled: float | None = None
    token_ids: list[int] = dataclasses.field(default_factory=list)
    token_times: list[float] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)  # The answer's text in pieces.
    done: float | None = None
    error: str = ""
    faults: list[str] = dataclasses.field(default_factory=list)  # Broken promises of the target.

    def __call__(self, event: TokenEvent) -> None:
        if self.done is not None:
            self.faults.append(f"request {self.id}: {event.kind!r} after it was done")
        elif event.kind == "token":
            first = not self.token_times
            self.token_ids.extend(event.token_ids)
            self.token_times.extend([event.time] * len(event.token_ids))
            self.texts.append(event.text)
            if first and self.token_times:
                self.on_first_token(self)
        elif event.kind == "scheduled":
            if self.scheduled is not None:
                self.faults.append(f"request {self.id}: scheduled twice")
            self.scheduled = event.time
        else:
            self.done = event.time
            if event.finish_reason in ("error", "cancelled"):
                self.error = event.error or str(event.finish_reason)
            elif self.item.forced and self.item.forced != tuple(self.token_ids):
                self.faults.append(f"request {self.id}: other tokens than those forced on it")
            self.on_done(self)

    def timeline(self, start: float, arrival: float) -> RequestTimeline:
        since = lambda t: None if t is None else t - start
        return RequestTimeline(
            id=self.id,
            arrival_s=arrival - start,
            scheduled_s=since(self.scheduled),
            first_token_s=since(self.token_times[0]) if self.token_times else None,
            done_s=since(self.done),
            n_in=len(self.item.prompt_token_ids),
            n_out=len(self.token_ids),
            n_requested=self.item.n_expected,
            token_times_s=tuple(t - start for t in self.token_times),
            error=self.error if self.done is not None else "never done",
        )


class Recorder:
    """The logs of one run's requests, in the order in which they were issued."""

    def __init__(self, on_first_token: Notify = _ignore, on_done: Notify = _ignore):
        self.logs: list[RequestLog] = []
        self._on_first_token = on_first_token
        self._on_done = on_done
        self._done = 0
        self._lock = threading.Lock()

    def open(self, item_index: int, item: Item, issued: float) -> tuple[Request, RequestLog]:
        """A request for `item`, the workload's item of that index, that is listened to."""
        log = RequestLog(
            id=f"q{len(self.logs):05d}",
            item_index=item_index,
            item=item,
            on_first_token=self._on_first_token,
            on_done=self._finish,
            issued=issued,
        )
        self.logs.append(log)
        return Request(log.id, item.prompt_token_ids, item.params, listener=log, forced=item.forced), log

    def _finish(self, log: RequestLog) -> None:
        with self._lock:
            self._done += 1
        self._on_done(log)

    @property
    def done(self) -> int:
        return self._done

    @property
    def faults(self) -> tuple[str, ...]:
        return tuple(fault for log in self.logs for fault in log.faults)

    def timelines(self, start: float, arrivals: Mapping[str, float]) -> tuple[RequestTimeline, ...]:
        """Every request's life; `start` and the arrivals by `time.perf_counter()`."""
        return tuple(log.timeline(start, arrivals[log.id]) for log in self.logs)

    def answers(self) -> tuple[LoadedAnswer, ...]:
        """Those of completed requests, to be compared with a reference's; forced tokens are no side's own answer."""
        return tuple(
            LoadedAnswer(log.item_index, tuple(log.token_ids), "".join(log.texts))
            for log in self.logs
            if log.done is not None and not log.error and not log.item.forced
        )
