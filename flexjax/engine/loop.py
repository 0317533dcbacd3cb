"""The thread that takes an engine's turns, and what happens when a turn fails."""

import logging
import threading
from collections.abc import Sequence
from typing import Protocol

from flexjax.engine.request import FinishReason
from flexjax.engine.teller import described

_PATIENCE_SECONDS = 5.0  # For a thread that may wait for a device for ever.


class Turns(Protocol):
    """What a loop needs of an engine."""

    def step(self) -> bool: ...

    @property
    def has_news(self) -> bool: ...

    def end_all(self, reason: FinishReason, error: str, *, failure: BaseException | None = None) -> None: ...


class Loop:
    """One thread for the turns of one engine, or of several that take them one after the other.

    Whatever ends a turn early, be it an exception, an interrupt or a panic in a library, fails all of them for good:
    each open request is told "done" with reason "error", and nothing is taken any more.
    """

    def __init__(self, *engines: Turns):
        self.engines: Sequence[Turns] = engines
        self.wake = threading.Condition()  # Also guards what `submit` and the thread share.
        self.failure: BaseException | None = None
        self.closed = False  # Between a stop and the next start.
        self._starting = threading.Lock()  # Held by start and stop: one thread at a time.
        self._thread: threading.Thread | None = None
        self._stopping = False

    def start(self) -> None:
        """Does nothing when the thread runs already, or after a failure: `submit` then says why. RuntimeError on the
        engine's own thread: a listener that generates would wait for itself."""
        self._refuse_own_thread("generate and stream wait")
        with self._starting:
            if self._thread is None and self.failure is None:
                self._stopping = self.closed = False
                self._thread = threading.Thread(target=self._run, name="flexjax-engine", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Ends the thread, where there is one, and every open request."""
        self._refuse_own_thread("stop waits")
        with self._starting:
            if self._thread is None:
                return self._end()
            with self.wake:
                self._stopping = True
                self.wake.notify()
            self._thread.join(None if self.failure is None else _PATIENCE_SECONDS)
            self._thread = None

    def _refuse_own_thread(self, who: str) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"{who} for the engine's thread, and a listener runs on that thread: make the call in another one."
            )

    def check_open(self) -> None:
        """RuntimeError, with its cause, when nothing can be taken."""
        if self.failure is not None:
            raise RuntimeError(
                f"The engine has failed and takes no requests: {described(self.failure)}"
            ) from self.failure
        if self.closed:
            raise RuntimeError("The engine was stopped; start() lets it take requests again.")
        if self._thread is not None and not self._thread.is_alive():
            raise RuntimeError(
                "The engine's thread is not in this process, which was forked from the one that loaded the model. Load "
                "the model in the process that uses it."
            )

    def fail(self, error: BaseException) -> None:
        """Ends every open request because of `error`, from any thread; the first failure counts."""
        with self.wake:
            if self.failure is not None:
                return
            self.failure, self.closed = error, True
            self.wake.notify()
        for engine in self.engines:
            engine.end_all("error", f"The engine failed: {described(error)}", failure=error)
        logging.error("The engine failed.", exc_info=error)

    def _run(self) -> None:
        try:
            while not self._ending:
                busy = [engine.step() for engine in self.engines]
                if not any(busy):
                    with self.wake:
                        self.wake.wait_for(lambda: self._ending or any(engine.has_news for engine in self.engines))
            self._end()
        except BaseException as error:
            self.fail(error)

    def _end(self) -> None:
        if self.failure is None and not self.closed:
            with self.wake:  # From here on `submit` refuses, so that nobody slips in behind.
                self.closed = True
            for engine in self.engines:
                engine.end_all("cancelled", "The engine was stopped.")

    @property
    def _ending(self) -> bool:
        return self._stopping or self.failure is not None
