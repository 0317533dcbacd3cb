"""One request's answer as it comes in: chunks of a stream become token events, and their count is put right."""

import collections
import time
from typing import NamedTuple

from tokenizers import Tokenizer

from flexjax.bench.openai_chunks import UNKNOWN_TOKEN, AnswerError, Choice, Chunk
from flexjax.engine import FinishReason, Request, TokenEvent

MOST_HELD = 8  # Tokens that wait at most, so that an answer without any text still comes bit by bit.


class _Piece(NamedTuple):
    token_ids: tuple[int, ...]
    text: str
    time: float
    told: bool  # The server told how many tokens these are.


class Answer:
    """Turns chunks into events, each token at its chunk's time.

    A chunk that does not tell its tokens is taken for one token, also without text: it may be half a character or a
    special token, and vLLM's own client takes the first such chunk for the time to the first token. Servers send
    chunks without a token as well, and only the usage at the end tells them apart. So the first token is handed over
    at once, and from then on as many are held back as chunks were unsure, MOST_HELD at most.
    """

    def __init__(self, request: Request):
        assert request.params.max_tokens is not None, "HttpTarget.submit refuses a request without a length"
        self._request, self._asked = request, request.params.max_tokens
        self._text = ""
        self._count = 0  # Tokens handed over or held.
        self._unsure = 0  # Chunks that were taken for a token and may be none.
        self._held: collections.deque[_Piece] = collections.deque()
        self._sent = False
        self._told = 0  # Tokens that the server told of.
        self._all_told = True  # Every chunk with text told its tokens.
        self._usage: int | None = None
        self._last: float | None = None  # When the last chunk came that could hold a token.
        self._reason = ""
        self._complete = False
        self._ended = False
        self.unread = ""  # The last chunk that said neither text nor tokens nor a count.

    @property
    def progress(self) -> str:
        return f"{self._count} of {self._asked} tokens"

    @property
    def empty(self) -> bool:
        """Whether no chunk has come that says anything."""
        return self._last is None and self._usage is None

    def finish(self) -> None:
        """The server said that the stream is complete."""
        self._complete = True

    def take(self, chunk: Chunk, now: float) -> None:
        """Hands over what a chunk, read at the time `now`, says."""
        asked = self._asked
        self.unread = chunk.unread or self.unread
        if (chunk.completion_tokens or 0) > self._count + asked:
            raise AnswerError(
                f"usage says {chunk.completion_tokens} tokens, {self._count} came and {asked} were asked for"
            )
        for choice in chunk.choices:
            if not choice.opens:
                self._last = now
                self._take_choice(choice, chunk.completion_tokens, now)
        if chunk.completion_tokens is not None:
            self._usage = chunk.completion_tokens
            if self._last is None and self._usage:
                self._last = now
            # The usage comes last where it comes alone.
            self._complete = self._complete or (not chunk.choices and self._usage > 0)

    def settle(self, tokenizer: Tokenizer | None) -> str:
        """Puts the count right, what was missed at the last chunk's time; returns what it was taken from.

        AnswerError where the count cannot be had or the answer is not whole.
        """
        asked = self._asked
        counted = self._total(tokenizer)
        total, how = counted or (self._count, "")
        if not self._reason and not self._complete and total < asked:
            raise AnswerError(f"the stream ended after {total} of {asked} tokens, without finish_reason or [DONE]")
        if counted is None:
            raise AnswerError(
                "the server tells neither usage nor tokens; set tokenizer to the model's directory to count them"
            )
        self._drop(self._count - total)
        if total < self._count and how == "usage":
            raise AnswerError(f"usage says {total} tokens, {self._count} chunks held some")
        missing = total - self._count
        if missing > 0 and self._last is not None:
            self._count += missing
            self._held.append(_Piece((UNKNOWN_TOKEN,) * missing, "", self._last, told=True))
        self._release(keep=0)
        return how

    def end(self, error: str = "") -> None:
        """Tells that the answer is over; only the first call does."""
        if self._ended:
            return
        self._ended = True
        self._release(keep=0)
        whole = self._reason or ("length" if self._count >= self._asked else "stop")
        reason: FinishReason = "error" if error else "length" if whole == "length" else "stop"
        self._tell(TokenEvent("done", self._request.id, time.perf_counter(), finish_reason=reason, error=error))

    def _take_choice(self, choice: Choice, usage: int | None, now: float) -> None:
        self._text += choice.text
        self._reason = choice.finish_reason or self._reason
        told, ids = True, choice.token_ids
        if ids is None or (choice.text and not ids):
            self._all_told = self._all_told and not choice.text
            ids = (UNKNOWN_TOKEN,) * max(0, (usage or 0) - self._count)
            if not ids and (choice.text or usage is None):
                ids, told = (UNKNOWN_TOKEN,), False
                self._unsure += not choice.text or bool(usage)
        self._count += len(ids)
        self._told += len(ids) if told else 0
        piece = _Piece(ids, choice.text, now, told)
        if not self._unsure:
            self._hand_over(piece)
            return
        self._held.append(piece)
        if not self._sent and ids and (told or choice.text or not choice.finish_reason):
            self._release(keep=0)
        self._release(keep=min(self._unsure, MOST_HELD))

    def _total(self, tokenizer: Tokenizer | None) -> tuple[int, str] | None:
        if self._usage is not None:
            return self._usage, "usage"
        if self._all_told and self._told:
            return self._told, "token_ids or logprobs"
        if tokenizer is None:
            return None
        # A server may send the halves of a UTF-16 pair in two chunks.
        text = self._text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return len(tokenizer.encode(text, add_special_tokens=False).ids), "re-tokenised text"

    def _drop(self, surplus: int) -> None:
        """Takes back up to `surplus` tokens of unsure chunks: those without text first, then the last."""
        surplus = min(surplus, self._unsure)
        for has_text in (False, True):
            for place in reversed(range(len(self._held))):
                piece = self._held[place]
                if surplus > 0 and not piece.told and piece.token_ids and bool(piece.text) == has_text:
                    self._held[place] = piece._replace(token_ids=())
                    self._count -= 1
                    surplus -= 1

    def _release(self, keep: int) -> None:
        """Hands over the oldest pieces, as long as `keep` tokens or more stay."""
        held = sum(len(piece.token_ids) for piece in self._held)
        while self._held and held - len(self._held[0].token_ids) >= keep:
            piece = self._held.popleft()
            held -= len(piece.token_ids)
            self._hand_over(piece)

    def _hand_over(self, piece: _Piece) -> None:
        if piece.token_ids or piece.text:
            self._sent = self._sent or bool(piece.token_ids)
            event = TokenEvent("token", self._request.id, piece.time, token_ids=piece.token_ids, text=piece.text)
            self._tell(event)

    def _tell(self, event: TokenEvent) -> None:
        if self._request.listener is not None:
            self._request.listener(event)
