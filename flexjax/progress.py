"""A line for each finished part of a job, with the time that is left; and what is done survives an interruption."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Progress:
    """Counts the parts of a job.

    >>> with Progress(len(parts)) as progress:
    ...     for part in parts:
    ...         results.append(measure(part))
    ...         progress.done(part.name)  # [3/12] int8: 12 s, about 2 min left
    >>> write(results, fault=progress.fault)
    >>> progress.close()

    What ends the `with` early (Ctrl-C, an error) is held back until `close`, so that what is done is written first;
    where nothing is done it is not held back.
    """

    def __init__(self, total: int, *, at_most: bool = False, clock: Callable[[], float] = time.monotonic):
        self.total, self.finished = total, 0
        self._at_most = at_most  # Fewer parts may do.
        self._clock = clock
        self._began = self._last = clock()
        self._lock = threading.Lock()
        self._end: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def done(self, what: str, parts: int = 1) -> None:
        """Tells that so many parts have ended; `what` names them, and may give a figure. Of any thread."""
        with self._lock:
            self.finished += parts
            self.total = max(self.total, self.finished)
            now = self._clock()
            took, self._last = now - self._last, now
            left = (now - self._began) / self.finished * (self.total - self.finished)
            of = f"at most {self.total}" if self._at_most else f"{self.total}"
            rest = f", {'at most' if self._at_most else 'about'} {duration(left)} left" if left else ""
            # At once, also into a log: a job of an hour is watched there.
            print(f"[{self.finished}/{of}] {what}: {duration(took)}{rest}", flush=True)

    @property
    def fault(self) -> str:
        """What makes the result incomplete; empty where nothing does."""
        if self._end is None:
            return ""
        how = "interrupted" if isinstance(self._end, KeyboardInterrupt) else f"ended by {type(self._end).__name__}"
        return f"{how} after {self.finished} of {self.total} parts"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None or not self.finished:
            return False
        self._end = error
        print(f"{self.fault}; what is done is kept.".capitalize(), flush=True)
        return True

    def close(self) -> None:
        """Raises what ended the parts early."""
        if self._end is not None:
            raise self._end


def duration(seconds: float) -> str:
    """In words: "0.4 s", "12 s", "4 min", "3 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
