"""The text of a continuation as it comes: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from flexjax.engine.detokenize import Detokenizer


class TextStream:
    """The text of one continuation of a prompt that ends in the tokens `after`.

    `push` returns the text that has become final. Text that may be the beginning of a stop string is
    held back until that is decided. Special tokens are no part of the text, but a stop string may name
    them: it then ends the text where they come. Without a tokenizer the text stays empty.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str] = (), after: Sequence[int] = ()):
        self._text = Detokenizer(tokenizer, after) if tokenizer else None
        self._marks = _marks(tokenizer, stop) if tokenizer and stop else {}
        self._stops = (*stop, *_spelled(stop, self._marks))
        self._held = ""  # With the marks of special tokens in it.
        self.stopped = False

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """`may_stop=False` lets stop strings pass that are complete by now; only before the first token that may."""
        if self._text is None:
            return ""
        piece = self._text.push(token_id)
        if not self._stops:
            return piece
        if token_id in self._marks:
            piece += (self._text.flush() if may_stop else "") + self._marks[token_id][1]
        passed, self._held = len(self._held), self._held + piece
        start = self._first_stop(passed) if may_stop else None
        if start is not None:
            final, self._held, self.stopped = self._held[:start], "", True
            self._text = None
        else:
            cut = self._first_open()
            final, self._held = self._held[:cut], self._held[cut:]
        return self._without_marks(final)

    def flush(self) -> str:
        """What was held back, once no stop string can follow."""
        final, self._held = self._held + (self._text.flush() if self._text else ""), ""
        return self._without_marks(final)

    def _first_stop(self, passed: int) -> int | None:
        """Where the earliest stop string begins; one that ends within the first `passed` characters does not count."""
        found = []
        for text, places in self._readings():
            known = sum(place < passed for place in places)
            for stop in self._stops:
                at = text.find(stop, max(0, known - len(stop) + 1))
                if at >= 0:
                    found.append(places[at])
        return min(found, default=None)

    def _first_open(self) -> int:
        """Where the first suffix begins that a stop string may begin with."""
        keep = len(self._held)
        for text, places in self._readings():
            overlap = max(_overlap(text, stop) for stop in self._stops)
            if overlap:
                keep = min(keep, places[-overlap])
        return keep

    def _readings(self) -> list[tuple[str, Sequence[int]]]:
        """What is held, with the marks and without, and where each character of it stands."""
        readings: list[tuple[str, Sequence[int]]] = [(self._held, range(len(self._held)))]
        if self._marks and (plain := self._without_marks(self._held)) != self._held:
            marks = {mark for _, mark in self._marks.values()}
            readings.append((plain, [i for i, c in enumerate(self._held) if c not in marks]))
        return readings

    def _without_marks(self, text: str) -> str:
        for _, mark in self._marks.values():
            text = text.replace(mark, "")
        return text


def _marks(tokenizer: Tokenizer, stop: Sequence[str]) -> dict[int, tuple[str, str]]:
    """Id → name and mark of each special token that a stop string names. A mark is half of a surrogate pair, which no
    decoded text has."""
    added = tokenizer.get_added_tokens_decoder().items()
    named = [(i, t.content) for i, t in added if t.special and t.content and any(t.content in s for s in stop)]
    return {i: (name, chr(0xD800 + n)) for n, (i, name) in enumerate(named[:0x800])}


def _spelled(stop: Sequence[str], marks: dict[int, tuple[str, str]]) -> list[str]:
    """The stop strings that name special tokens, each with the marks in the place of the names."""
    spelled = []
    for text in stop:
        marked = text
        for name, mark in sorted(marks.values(), key=lambda pair: -len(pair[0])):  # The longer of two that overlap.
            marked = marked.replace(name, mark)
        if marked != text:
            spelled.append(marked)
    return spelled


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that begins `stop`."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
