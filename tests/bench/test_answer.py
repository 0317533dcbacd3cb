"""Chunks in, events out: how many tokens, when, and whether the answer is whole; no socket."""

import json

import pytest

from flexjax.bench.answer import MOST_HELD, Answer
from flexjax.bench.openai_chunks import UNKNOWN_TOKEN, AnswerError, read_chunk
from flexjax.engine.request import Request, SamplingParams

EMPTY = {"text": ""}
ROLE = {"delta": {"role": "assistant", "content": ""}}
END = {"text": "", "finish_reason": "length"}


class Played:
    """An answer to chunks that come at 1, 2, 3 … s: a choice each, ints are the usage that comes last."""

    def __init__(self, *chunks, max_tokens: int = 4, tokenizer=None, done: bool = False):
        self.events = []
        self.answer = Answer(Request("q", (1,), SamplingParams(max_tokens=max_tokens), listener=self.events.append))
        self.seen = []  # Tokens handed over after each chunk.
        for time, chunk in enumerate(chunks, start=1):
            if isinstance(chunk, str):
                chunk = {"text": chunk}
            whole = {"usage": {"completion_tokens": chunk}} if isinstance(chunk, int) else {"choices": [chunk]}
            if isinstance(chunk, dict) and "usage" in chunk:
                whole["usage"] = {"completion_tokens": chunk["usage"]}
            self.answer.take(read_chunk(json.dumps(whole)), float(time))
            self.seen.append(len(self.times))
        if done:
            self.answer.finish()
        self.how = self.answer.settle(tokenizer)
        self.answer.end()

    @property
    def times(self) -> list[float]:
        return [e.time for e in self.events if e.kind == "token" for _ in e.token_ids]

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.events)


@pytest.mark.parametrize(
    ("chunks", "times"),
    [
        (("a", "b", "c", "d", 4), [1, 2, 3, 4]),
        ((EMPTY, "b", "c", "d", 4), [1, 2, 3, 4]),  # Half a character first.
        ((EMPTY, EMPTY, EMPTY, EMPTY, 4), [1, 2, 3, 4]),  # Nothing but special tokens.
        (("a", EMPTY, "c", EMPTY, 4), [1, 2, 3, 4]),
        (("a", "b", "c", {"text": "", "finish_reason": "stop"}, 4), [1, 2, 3, 4]),  # The end token has no text.
        (("a", "b", "c", "d", END, 4), [1, 2, 3, 4]),  # The last chunk only says why.
        ((ROLE, "a", "b", "c", "d", 4), [2, 3, 4, 5]),
        ((EMPTY, "a", "b", "c", "d", 4), [1, 2, 3, 4]),  # A preamble: the first chunk counts, as in vLLM's client.
        (
            ("a", "b", EMPTY, "c", EMPTY, "d", END, 4),
            [1, 2, 3, 4],
        ),  # Signs of life: the count is right.
        (("abc", "d", 4), [1, 2, 2, 2]),  # The usage at the end puts the count right at the last chunk.
        (("abc", END, 4), [1, 2, 2, 2]),
        (({"text": "abc", "usage": 3}, {"text": "d", "usage": 4}, 4), [1, 1, 1, 2]),  # It runs with the chunks.
        (({"text": "", "usage": 0}, {"text": "ab", "usage": 2}, {"text": "cd", "usage": 4}), [2, 2, 3, 3]),
        (
            ({"text": "a", "usage": 0}, {"text": "b", "usage": 1}, {"text": "c", "usage": 2}, "d", 4),
            [1, 2, 3, 4],  # The usage lags.
        ),
        (({"text": "ab", "token_ids": [7, 8]}, {"text": "cd", "token_ids": [9, 10]}, END), [1, 1, 2, 2]),
        ((4,), [1, 1, 1, 1]),  # Usage alone: all at its time, never at the clock's zero.
        ((ROLE, 4), [2, 2, 2, 2]),
        ((EMPTY, 4), [1, 1, 1, 1]),
        ((END, 4), [1, 1, 1, 1]),
    ],
)
def test_each_token_has_the_time_of_its_chunk(chunks, times):
    played = Played(*chunks)
    assert played.times == times
    assert played.events[-1].kind == "done" and played.events[-1].finish_reason in ("length", "stop")
    assert [e.time for e in played.events[:-1]] == sorted(e.time for e in played.events[:-1])


def test_the_first_token_is_handed_over_at_once_also_without_text():
    assert Played(EMPTY, "b", "c", "d", 4).seen[0] == 1
    assert Played("a", "b", "c", "d", 4).seen == [1, 2, 3, 4, 4]
    count = 3 * MOST_HELD
    assert Played(*[EMPTY] * count, count, max_tokens=count).seen[-2] == count - MOST_HELD


def test_text_comes_whole_whatever_becomes_of_its_token():
    played = Played(EMPTY, "a", "b", END, 2)
    assert (played.text, len(played.times)) == ("ab", 2)


def test_tokens_that_are_told_are_handed_over_as_they_are():
    played = Played({"text": "ab", "token_ids": [7, 8]}, {"text": "c", "logprobs": {"tokens": ["c"]}}, END, 3)
    assert [e.token_ids for e in played.events[:-1]] == [(7, 8), (UNKNOWN_TOKEN,)]
    assert Played({"text": "ab", "token_ids": [7, 8]}, EMPTY, END).how == "token_ids or logprobs"


def test_counted_by_the_tokenizer_where_nothing_is_told(byte_tokenizer):
    assert Played(EMPTY, "ab", "cd", END, tokenizer=byte_tokenizer).times == [1, 2, 3, 4]
    halves = Played("\ud83d", "\ude00", END, tokenizer=byte_tokenizer)
    assert halves.how == "re-tokenised text" and len(halves.times) == 4
    with pytest.raises(AnswerError, match="set tokenizer"):
        Played("a", END)


@pytest.mark.parametrize(
    ("chunks", "options", "reason"),
    [
        (("a", {"text": "b", "finish_reason": "length"}, 2), {}, "length"),
        (("a", {"text": "b", "finish_reason": "stop"}, 2), {}, "stop"),
        (("a", {"text": "b", "finish_reason": "eos_token"}, 2), {}, "stop"),
        (("a", "b", 2), {}, "stop"),  # Usage that comes alone comes last.
        (("a", {"text": "b", "usage": 2}), dict(done=True), "stop"),
        (("a", {"text": "b", "usage": 2}), dict(max_tokens=2), "length"),
    ],
)
def test_the_reason_of_the_end(chunks, options, reason):
    assert Played(*chunks, **options).events[-1].finish_reason == reason


@pytest.mark.parametrize(
    ("chunks", "why"),
    [
        (("a", "b"), "ended after 2 of 4 tokens, without finish_reason"),
        (("a", {"text": "b", "usage": 2}), "ended after 2 of 4 tokens, without finish_reason"),
        (("a", "b", "c", "d", 1), "usage says 1 tokens, 4 chunks held some"),
        ((EMPTY, 0), "usage says 0 tokens, 1 chunks"),
        (("a", 10**12), "usage says 1000000000000 tokens, 1 came and 4 were asked for"),
        (({"text": "a", "usage": 10**12},), "usage says 1000000000000 tokens, 0 came and 4 were asked for"),
    ],
)
def test_an_answer_that_cannot_be_right_is_an_error(chunks, why):
    with pytest.raises(AnswerError, match=why):
        Played(*chunks, done="usage says 0" in why)


def test_an_error_comes_after_what_was_held_and_only_once():
    events = []
    answer = Answer(Request("q", (1,), SamplingParams(max_tokens=4), listener=events.append))
    for text in ("", "a", "b"):
        answer.take(read_chunk(json.dumps({"choices": [{"text": text}]})), 1.0)
    answer.end("out of memory")
    answer.end("again")
    assert [(e.kind, e.error) for e in events] == [("token", "")] * 3 + [("done", "out of memory")]
