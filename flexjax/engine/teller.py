"""What one request is told, and the end of that request alone where it cannot be told."""

import dataclasses
import logging
import threading
import traceback
from collections.abc import Callable

from flexjax.engine.request import Listener, TokenEvent


def described(error: BaseException) -> str:
    """Type and message in one text; never raises, whatever the error's own `__str__` does."""
    return "".join(traceback.format_exception_only(error)).strip()


class Teller:
    """Tells one request's listener what happens to it, from any thread.

    A fault of the hand-over (the listener raises, tokens cannot be made text) concerns this request alone: `end` is
    called so that it ends, and the listener is told nothing more but "done" with reason "error", once for each
    continuation. "done" is always a continuation's last event, and comes once.
    """

    def __init__(
        self,
        request_id: str = "",
        listener: Listener | None = None,
        end: Callable[[BaseException], None] = lambda error: None,
    ):
        self.error = ""  # What went wrong in the hand-over.
        self._request_id, self._listener, self._end = request_id, listener, end
        self._ended: set[int] = set()
        self._telling = threading.RLock()  # A listener may cause events of its own request.

    def __call__(self, event: TokenEvent) -> None:
        with self._telling:
            last = event.kind == "done"
            if event.index in self._ended or (self.error and not last):
                return
            if last:
                self._ended.add(event.index)
                if self.error and not event.fatal:
                    event = dataclasses.replace(event, finish_reason="error", error=self.error)
            if self._listener is None:
                return
            try:
                self._listener(event)
            except BaseException as error:  # Also SystemExit and a Rust panic: it is no other request's fault.
                self.fail(f"The listener of request {self._request_id!r} raised", error)

    def fail(self, what: str, error: BaseException) -> None:
        """Ends the request because of `error`; the first one is what its listener is told."""
        first, self.error = not self.error, self.error or f"{what}: {described(error)}"
        if first:
            self._end(error)
        logging.error("%s; the request ends.", what, exc_info=error)
