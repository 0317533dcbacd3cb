"""A job over several processes: process 0 runs it, the others take their parts, and all end with its exit status.

Unless its module says otherwise (`flexjax.jobs`), a job runs in process 0 alone. The others wait, load with it each
model that it spreads over them (`flexjax.engine.processes.crew`), and serve their parts until it closes the model.

Whatever ends a process ends all: the exit status of process 0 goes to every other, a failure elsewhere comes to
process 0, and where a process is lost the others name it and end with `distributed.LOST`.
"""

import dataclasses
import functools
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from flexjax.engine.processes import Load, Post, Replicas, crew, load_engine
from flexjax.hardware import compile_cache, distributed

GRACE_S = 10.0  # For a process to end by itself, once one has failed.
_BARRIER_S = 300.0  # For the others to finish what process 0 has finished.

_ORDERS, _VERDICT, _FAILED, _LEFT, _END, _WORKDIR = "orders", "verdict", "failed", "left", "end", "workdir"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How process 0 ended."""

    status: int
    whole: bool  # By returning; after an exception nobody knows what the devices still wait for.


@dataclasses.dataclass(frozen=True)
class Failure:
    """What ended another process."""

    process: str
    what: str
    status: int


def run(work: Callable[[Path], int], workdir: Path, *, everywhere: bool, tell: Callable[[BaseException], int]) -> int:
    """The exit status of `work(workdir)` in process 0. The others follow it, or where `everywhere` call `work` too,
    with process 0's `workdir`.

    `tell` prints what a failure was and returns its exit status. Does not return where something was left undone:
    the process ends at once, because devices may wait for ever for a process that is gone.
    """
    post = Post()
    member = _Other(post, tell) if post.index else _Leader(post, tell)
    with distributed.on_abort(member.aborted):
        return member.run(work, workdir, everywhere)


class _Member:
    """This process's side of it."""

    def __init__(self, post: Post, tell: Callable[[BaseException], int]):
        self.post, self._tell = post, tell
        self.verdict: Verdict | None = None
        self._ending = threading.Lock()
        threading.Thread(target=self._watch, name="flexjax-processes", daemon=True).start()

    def _watch(self) -> None:
        self.post.ended.wait()
        if self.verdict is None:
            self._end_as_lost()

    def aborted(self) -> None:
        """JAX ends a process by itself when process 0 is gone, and does not say whose death it was."""
        if self.verdict is not None:
            _leave(self.verdict.status)
        if self.post.ended.wait(1.0):
            self._end_as_lost()

    def _end_as_lost(self) -> NoReturn:
        _say(f"error: {self.post.lost}, and {self.post.name(self.post.index)} ends with it.")
        _leave(distributed.LOST)


class _Leader(_Member):
    """Process 0."""

    def run(self, work: Callable[[Path], int], workdir: Path, everywhere: bool) -> int:
        threading.Thread(target=self._hear, name="flexjax-failures", daemon=True).start()
        try:
            if everywhere:
                self._send_all(_WORKDIR, str(workdir))
            else:
                crew.on_load(functools.partial(self._send_all, _ORDERS))
            verdict = Verdict(work(workdir), whole=True)
        except BaseException as error:  # Also an interrupt: the others must be told.
            verdict = Verdict(self._tell(error), whole=False)
        return self._conclude(verdict)

    def _hear(self) -> None:
        """Ends the job for a failure elsewhere. Most are process 0's own too, which then tells them itself."""
        failure = self.post.take(_FAILED)
        if failure is None:
            return
        time.sleep(GRACE_S)
        if self.verdict is None:
            _say(f"error: {failure.process} failed: {failure.what}")
            self._conclude(Verdict(failure.status, whole=False))

    def _conclude(self, verdict: Verdict) -> int:
        with self._ending:
            if self.post.ended.is_set():
                self._end_as_lost()
            self.verdict = verdict
            self._send_all(_VERDICT, verdict)
            left = [self._left(process, verdict) for process in self._others]
            whole = verdict.whole and all(left)
            self._send_all(_END, whole)
            self.post.close()
            return verdict.status if whole else _leave(verdict.status)

    def _left(self, process: int, verdict: Verdict) -> bool:
        """Whether the process has nothing left to do; waits for it."""
        try:
            left = self.post.take(f"{_LEFT}-{process}", timeout=_BARRIER_S if verdict.whole else 3 * GRACE_S)
        except queue.Empty:
            _say(f"error: {self.post.name(process)} does not end.")
            return False
        if left is None:
            self._end_as_lost()
        return left

    def _send_all(self, box: str, letter: Any) -> None:
        for process in self._others:
            self.post.send(process, box, letter)

    @property
    def _others(self) -> range:
        return range(1, self.post.count)


class _Other(_Member):
    """A process that is not process 0."""

    def __init__(self, post: Post, tell: Callable[[BaseException], int]):
        super().__init__(post, tell)
        self._parts: list[threading.Thread] = []  # Each waits for the end of a model.
        self._failed = False
        self._over = threading.Event()  # The verdict is known.

    def run(self, work: Callable[[Path], int], workdir: Path, everywhere: bool) -> int:
        print(f"process {self.post.index} of {self.post.count} {'takes part' if everywhere else 'follows'}", flush=True)
        threading.Thread(target=self._await_verdict, name="flexjax-verdict", daemon=True).start()
        try:
            if everywhere:
                if (place := self.post.take(_WORKDIR)) is not None:
                    work(Path(place))
            else:
                self._follow()
        except BaseException as error:  # Also an interrupt: process 0 must be told.
            self._report(error)
        self._over.wait()
        return self._conclude()

    def _follow(self) -> None:
        while isinstance(order := self.post.take(_ORDERS), Load):
            if order.cached:
                compile_cache.enable()
            engine = load_engine(order.directory, order.config, order.here)
            part = threading.Thread(target=self._serve, args=(engine,), name="flexjax-part", daemon=True)
            part.start()
            self._parts.append(part)
            del engine  # It goes when its model is closed.

    def _serve(self, engine: Replicas) -> None:
        assert engine.meeting is not None
        try:
            engine.meeting.follow()
            engine.stop()
        except RuntimeError as error:
            # Where a process is gone, that is said once, for the whole job.
            if not self.post.ended.wait(1.0) and not self._over.is_set():
                self._report(error)

    def _report(self, error: BaseException) -> None:
        self._failed = True
        status = self._tell(error)
        what = "it was interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        self.post.send(0, _FAILED, Failure(self.post.name(self.post.index), what, status))

    def _await_verdict(self) -> None:
        self.verdict = self.post.take(_VERDICT)
        if self.verdict is None:
            return
        self._over.set()
        self.post.send(self.post.index, _ORDERS, self.verdict)
        if not self.verdict.whole:
            time.sleep(GRACE_S)  # After which the main thread waits for what never comes.
            self._conclude()

    def _conclude(self) -> int:
        with self._ending:
            assert self.verdict is not None
            for part in self._parts:
                part.join(GRACE_S if self.verdict.whole else 0)
            done = not self._failed and not any(part.is_alive() for part in self._parts)
            self.post.send(0, f"{_LEFT}-{self.post.index}", done)
            whole = self.post.take(_END)
            return self.verdict.status if whole else _leave(self.verdict.status)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _leave(status: int) -> NoReturn:
    """Ends the process at once: JAX's own way out waits for every process, and for what runs on the devices."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
