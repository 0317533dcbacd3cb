"""What is measured: anything that takes requests and tells when their tokens come."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from flexjax.bench.result import StartUp, StatsSample
from flexjax.engine import Request


@dataclasses.dataclass(frozen=True)
class TargetStats:
    """What a target has done since it started."""

    samples: tuple[StatsSample, ...] = ()  # One a step, of the last steps; `time_s` by `time.perf_counter()`.
    host_s: float = 0.0  # Of the steps' time, spent in Python outside the device.
    device_s: float = 0.0  # Spent waiting for the device.
    cache_values_written: int = 0  # Numbers into a cache that counts what it clips,
    cache_values_clipped: int = 0  # and those of them that it clipped.


def allocated_dtypes(what: str, requested: str, found: Iterable[Any], beside: Iterable[str] = ()) -> str:
    """The requested dtype, e.g. "bfloat16"; RuntimeError where it is not among those found, or one is that is neither
    it nor of those that may stand `beside` it."""
    names = sorted({str(dtype) for dtype in found})
    if requested not in names or set(names) - {requested, *beside}:
        raise RuntimeError(f"The {what} must be {requested}, as requested; allocated were {', '.join(names)}.")
    return requested


class Target(Protocol):
    """A server under test, in this process or behind a URL.

    Between `start` and `stop` any thread may call `submit`, which returns at once. The request's
    `listener` is then called from another thread with "scheduled" (where the target knows), "token"
    and at last exactly one "done" event. An idle target uses no CPU.
    """

    name: str

    def start(self) -> StartUp:
        """Loads, compiles everything that serving needs, and begins to serve."""
        ...

    def submit(self, request: Request) -> None: ...

    def stop(self) -> None:
        """Ends serving; requests still in flight end with an error."""
        ...

    def describe(self) -> dict[str, Any]:
        """Flat and JSON-able: software versions, dtypes really allocated, bodies that ran, limits."""
        ...

    def stats(self) -> TargetStats: ...


@runtime_checkable
class Prepares(Protocol):
    """A target that has something to do before each measured run, outside its window."""

    def prepare(self) -> None: ...
