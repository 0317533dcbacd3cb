"""From token ids to text as they come, whole characters only, at a bounded cost a token."""

import dataclasses
import itertools
import weakref
from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer

_UNKNOWN = "\ufffd"  # What stands in a text for bytes that are no character.

# A character has four bytes, and decoders look one token back: so many tokens tell what comes after them.
_KEPT = 4
_WINDOW = 8  # At so many tokens without a whole character at their end only the last `_KEPT` stay.
_MOST_PAIRS = 100_000  # Some 20 MB.


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What single tokens of a tokenizer are; kept, because looking it up costs as much as decoding."""

    special: frozenset[int]
    byte_values: Mapping[int, int]  # Byte fallback: id → the byte.
    lengths: dict[int, int] = dataclasses.field(default_factory=dict)  # Id → characters alone; -1 is no text at all.
    pairs: dict[tuple[int, int], str] = dataclasses.field(default_factory=dict)  # What the second adds to the first.

    @staticmethod
    def of(tokenizer: Tokenizer) -> "Tokens":
        if tokenizer not in _TOKENS:
            added = tokenizer.get_added_tokens_decoder()
            special = frozenset(i for i, token in added.items() if token.special)
            _TOKENS[tokenizer] = Tokens(special, _byte_values(tokenizer))
        return _TOKENS[tokenizer]


_TOKENS: weakref.WeakKeyDictionary[Tokenizer, Tokens] = weakref.WeakKeyDictionary()


def _byte_values(tokenizer: Tokenizer) -> dict[int, int]:
    if tokenizer.decoder is None or b'"ByteFallback"' not in tokenizer.decoder.__getstate__():
        return {}
    ids = ((tokenizer.token_to_id(f"<0x{byte:02X}>"), byte) for byte in range(256))
    return {i: byte for i, byte in ids if i is not None}


class Detokenizer:
    """The text of the tokens that follow `after`, without special tokens.

    All that `push` and `flush` return, joined, is what `tokenizer.decode` makes of the tokens, in the context of
    those before. One difference is meant: a character of byte tokens (byte fallback) is given out when it is whole,
    and stays when a later byte of the same run is wrong; decoded at once, the whole run would be lost.

    A push decodes at most `_WINDOW` tokens, and tokens that stand for no text decode none.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._tokens = Tokens.of(tokenizer)
        self._window: list[tuple[int, ...]] = []  # Ordinary tokens, and whole characters of byte tokens.
        self._given = 0  # Characters of the window's text that are given out.
        self._run: list[int] = []  # Byte tokens that are no whole character yet.
        self._broken = False  # Whether the current run of byte tokens has had a wrong one.
        self._alone: int | None = None  # The token that is all of the window, between two characters.
        for token_id in self._context(after):
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that has become final."""
        if self._alone is not None:
            known = self._tokens.pairs.get((self._alone, token_id))
            if known is not None:
                self._stand_alone(token_id)
                return known
        if self._length(token_id) < 0:
            return ""
        if token_id in self._tokens.byte_values:
            return self._push_byte(token_id)
        if self._run or self._broken:
            return self._end_run() + self._extend((token_id,))
        return self._extend((token_id,))

    def flush(self) -> str:
        """What is still open at the end: a character that was not completed."""
        ended = self._end_run()
        if not self._window:
            return ended
        text = self._decoded()
        rest, self._given = text[self._given :], len(text)
        return ended + rest

    def _context(self, after: Sequence[int]) -> Sequence[int]:
        """The end of the tokens before; it does not begin in the middle of a character of byte tokens."""
        texts = (i for i in reversed(after) if self._length(i) >= 0)
        tail = list(itertools.islice(texts, 2 * _KEPT))[::-1]
        return list(itertools.dropwhile(lambda i: 0x80 <= self._tokens.byte_values.get(i, 0) < 0xC0, tail))

    def _length(self, token_id: int) -> int:
        """Characters of a token alone; -1 for one that stands for no text: a special one, or a row without a token."""
        length = self._tokens.lengths.get(token_id)
        if length is None:
            known = token_id not in self._tokens.special and self._tokenizer.id_to_token(token_id) is not None
            length = len(self._tokenizer.decode([token_id])) if known else -1
            self._tokens.lengths[token_id] = length
        return length

    def _stand_alone(self, token_id: int) -> None:
        self._window, self._given, self._alone = [(token_id,)], self._tokens.lengths[token_id], token_id

    def _extend(self, tokens: tuple[int, ...]) -> str:
        before, self._alone = self._alone, None
        self._window.append(tokens)
        text = self._decoded()
        # The last one may be the first bytes of a character; those before it are wrong bytes, whatever comes.
        end = len(text) - text.endswith(_UNKNOWN)
        new, self._given = text[self._given : end], max(self._given, end)
        alone = self._length(tokens[0]) if len(tokens) == 1 else 1
        if alone and end == len(text):  # Between two characters the last token that has text is context enough.
            self._window, self._given = [tokens], alone
            if len(tokens) == 1:
                self._stand_alone(tokens[0])
                if before is not None:
                    self._remember(before, tokens[0], new)
        elif len(self._window) >= _WINDOW:
            open_end = len(text) - self._given
            del self._window[:-_KEPT]
            self._given = len(self._decoded()) - open_end
        return new

    def _remember(self, before: int, token_id: int, new: str) -> None:
        if len(self._tokens.pairs) >= _MOST_PAIRS:
            self._tokens.pairs.clear()
        self._tokens.pairs[before, token_id] = new

    def _decoded(self) -> str:
        return self._tokenizer.decode(list(itertools.chain.from_iterable(self._window)))

    def _push_byte(self, token_id: int) -> str:
        self._alone = None
        if self._broken:
            return _UNKNOWN
        self._run.append(token_id)
        run = bytes(self._tokens.byte_values[i] for i in self._run)
        try:
            run.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return ""
            lost = self._end_run()
            self._broken = True
            return lost
        whole, self._run = tuple(self._run), []
        return self._extend(whole)

    def _end_run(self) -> str:
        """Nothing more belongs to the run of byte tokens; those that are no character are lost."""
        self._broken = False
        if not self._run:
            return ""
        lost, self._run = self._run, []
        # One of them stays as the context; whole characters beside it would be decoded as lost too.
        self._window, self._given = [(lost[0],)], 1
        return _UNKNOWN * len(lost)
