"""From tokens to text as they come: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """The text of one continuation of a prompt that ends in the tokens `after`.

    `push` returns the text that has become final. Text that may be the beginning of a stop string is
    held back until that is decided. Without a tokenizer the text stays empty.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str] = (), after: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._decoder = _decoder(tokenizer, after) if tokenizer else None
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """`may_stop=False` lets a stop string pass; only before the first token that may."""
        piece = self._decode(token_id)
        if not self._stop or not may_stop:
            return piece
        self._held += piece
        starts = [i for i in map(self._held.find, self._stop) if i >= 0]
        if starts:
            final, self._held, self.stopped = self._held[: min(starts)], "", True
            return final
        keep = max(_overlap(self._held, s) for s in self._stop)
        cut = len(self._held) - keep
        final, self._held = self._held[:cut], self._held[cut:]
        return final

    def flush(self) -> str:
        """What was held back, once no stop string can follow."""
        final, self._held = self._held, ""
        return final

    def _decode(self, token_id: int) -> str:
        if self._tokenizer is None or self._decoder is None:
            return ""
        try:
            return self._decoder.step(self._tokenizer, token_id) or ""
        except Exception:  # The library's bare one: byte tokens that no longer continue what it has given out.
            self._decoder = DecodeStream(skip_special_tokens=True)
            return self._decoder.step(self._tokenizer, token_id) or ""


def _decoder(tokenizer: Tokenizer, after: Sequence[int]) -> DecodeStream:
    """A decoder that knows what went before: some tokenizers drop the space in front of a text's first word."""
    tail = list(after[-6:])
    if not tail or tokenizer.decode(tail, skip_special_tokens=True).endswith("\ufffd"):  # It ends within a character.
        return DecodeStream(skip_special_tokens=True)
    return DecodeStream(ids=tail, skip_special_tokens=True)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that begins `stop`."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
