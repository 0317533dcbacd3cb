"""Server-sent events out of the bytes of a stream, as the HTML standard has them (section 9.2).

A line ends at CR, LF or CRLF and at nothing else. Python's `str.splitlines` also ends one at U+2028, U+2029, U+0085 and
five control characters, all of which stand unescaped inside the JSON that servers send.
"""

import codecs
import re
from typing import NamedTuple

STRAY_CHARACTERS = 10_000  # Kept of the lines that are no field of an event.

_LINE_END = re.compile(r"\r\n|\r|\n")


class ServerEvent(NamedTuple):
    kind: str  # What its `event:` line says; "message" without one.
    data: str  # Its `data:` lines, joined by line feeds.
    time: float  # When the bytes of its last data line were read; as given to `feed`.


class EventParser:
    """Takes bytes as they come and gives each event as soon as its blank line is read.

    A character, a line end or the byte-order mark may be cut between two reads. Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._partial: list[str] = []  # The line that is not yet ended.
        self._after_cr = False  # A line feed that comes next belongs to the line end before.
        self._kind = ""
        self._data: list[str] = []
        self._time = 0.0
        self._stray: list[str] = []
        self._stray_room = STRAY_CHARACTERS

    @property
    def stray(self) -> str:
        """The lines that are no field of an event: what a server wrote that does not stream."""
        return "\n".join(self._stray)

    def feed(self, data: bytes, now: float) -> list[ServerEvent]:
        """The events that `data`, read at the time `now`, completes."""
        return self._lines(self._decoder.decode(data), now)

    def close(self, now: float) -> list[ServerEvent]:
        """What is left at the stream's end: an event whose blank line never came."""
        return self._lines(self._decoder.decode(b"", final=True) + "\n\n", now)

    def _lines(self, text: str, now: float) -> list[ServerEvent]:
        if self._after_cr and text:
            text = text.removeprefix("\n")
            self._after_cr = False
        if not text:
            return []
        self._after_cr = text.endswith("\r")
        *ended, rest = _LINE_END.split(text)
        if ended and self._partial:
            ended[0] = "".join((*self._partial, ended[0]))
            self._partial.clear()
        if rest:
            self._partial.append(rest)
        return [event for line in ended if (event := self._line(line, now)) is not None]

    def _line(self, line: str, now: float) -> ServerEvent | None:
        event = None
        field, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
            self._time = now
        elif not line:
            if any(self._data):
                event = ServerEvent(self._kind or "message", "\n".join(self._data), self._time)
            self._kind = ""
            self._data.clear()
        elif field == "event":
            self._kind = value
        elif field == "error":  # No field of the standard; llama.cpp tells errors so.
            event = ServerEvent("error", value, now)
        elif field not in ("id", "retry") and not (colon and not field) and self._stray_room > 0:
            self._stray.append(line[: self._stray_room])
            self._stray_room -= len(line) + 1
        return event
