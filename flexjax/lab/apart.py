"""Calls in a process of its own, so that a kernel that crashes, hangs or ruins its GPU's context ends that process and
nothing else."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, Self

MOST_CHARACTERS = 400  # Of a reason: a compiler's error may be a whole program.


class Failed(Exception):
    """The call raised, or its process died; the message says which."""


class TookTooLong(Failed):
    """The call was still running when its time was over."""


class Apart:
    """Runs functions, one at a time, in a child process that is begun when it is needed.

    A child goes on after a call that raised if `healthy` does not raise there; else the next call gets a new one.
    Functions, arguments and results are pickled. The child sees `environment` besides this process's own.
    """

    def __init__(self, healthy: Callable[[], Any], environment: Mapping[str, str] | None = None):
        self._healthy, self._environment = healthy, dict(environment or {})
        self._process: Any = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._end()

    def call(self, limit_s: float, function: Callable[..., Any], *args: Any) -> Any:
        """What the function returns; `Failed` for anything else that happens within so many seconds."""
        connection = self._connection or self._begin()
        try:
            connection.send((function, args))
            if not connection.poll(limit_s):
                self._end()
                raise TookTooLong(f"stopped after {limit_s:.0f} s")
            well, result, fit = connection.recv()
        except (EOFError, OSError):  # The other end is closed.
            raise Failed(self._death()) from None
        if not fit:
            self._end()
        if not well:
            raise Failed(result)
        return result

    def _begin(self) -> Connection:
        spawn = multiprocessing.get_context("spawn")  # A fork would share this process's GPU client.
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, self._healthy, self._environment), daemon=True)
        self._process.start()
        theirs.close()
        return self._connection

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            assert self._connection is not None
            self._connection.close()
        self._process = self._connection = None

    def _death(self) -> str:
        self._process.join()
        code = self._process.exitcode
        self._end()
        return f"its process died of {signal.Signals(-code).name}" if code < 0 else f"its process ended with {code}"


def reason(error: BaseException) -> str:
    """The error in one line, with what it groups."""
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
    text = "; ".join(f"{type(part).__name__}: {part}" for part in parts)
    return " ".join(text.split())[:MOST_CHARACTERS]


def _serve(connection: Connection, healthy: Callable[[], Any], environment: Mapping[str, str]) -> None:
    os.environ.update(environment)  # Before the first call starts a backend.
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        # Caught broadly: whatever a compiler, a driver or another library raises is what is to be told.
        try:
            answer, fit = (True, function(*args)), True
        except Exception as error:
            answer, fit = (False, reason(error)), passes(healthy)
        connection.send((*answer, fit))


def passes(healthy: Callable[[], Any]) -> bool:
    """Whether it does not raise."""
    try:
        healthy()
    except Exception:
        return False
    return True
