"""What chunks say, from servers of many makes; no socket."""

import json

import pytest

from flexjax.bench.openai_chunks import (
    SHOWN_CHARACTERS,
    UNKNOWN_TOKEN,
    AnswerError,
    Choice,
    body_error,
    is_error,
    read_chunk,
    shorten,
)


def choice(text="", token_ids=None, finish_reason="", opens=False) -> Choice:
    return Choice(text, token_ids, finish_reason, opens)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(text="a"), choice("a")),
        (dict(text=""), choice()),
        (dict(text=None), choice()),
        ({}, choice()),
        (dict(text="a", delta=None, logprobs=None, token_ids=None, finish_reason=None, stop_reason=7), choice("a")),
        (dict(text="", finish_reason="length"), choice(finish_reason="length")),
        (dict(delta={"role": "assistant"}), choice(opens=True)),
        (dict(delta={"role": "assistant", "content": ""}), choice(opens=True)),
        (dict(delta={"role": "assistant", "content": None}), choice(opens=True)),
        (dict(delta={"role": "assistant", "content": "a"}), choice("a")),
        (dict(delta={"role": None, "content": "a", "tool_calls": None}), choice("a")),
        (dict(delta={"role": "assistant", "content": ""}, finish_reason="stop"), choice(finish_reason="stop")),
        (dict(delta={"content": ""}), choice()),
        (dict(delta={}), choice()),
        (dict(delta={"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}), choice("ab")),
        (dict(delta={"content": None, "reasoning_content": "a", "reasoning": "a"}), choice("a")),
        (dict(delta={"content": "b", "reasoning": "a"}), choice("ab")),
        (dict(text="ab", token_ids=[5, 6]), choice("ab", (5, 6))),
        (dict(text="", token_ids=[]), choice("", ())),
        (dict(text="a", token_ids=[None, -4, 2**40]), choice("a", (UNKNOWN_TOKEN,) * 3)),
        (dict(text="ab", logprobs={"tokens": ["a", "b"]}), choice("ab", (UNKNOWN_TOKEN,) * 2)),
        (dict(text="a", logprobs={"tokens": None}), choice("a")),
        (dict(text="ab", token_ids=[], logprobs={"tokens": ["a", "b"]}), choice("ab", (UNKNOWN_TOKEN,) * 2)),
        (dict(delta={"content": "ab"}, logprobs={"content": [{}, {}]}), choice("ab", (UNKNOWN_TOKEN,) * 2)),
        (dict(text="", finish_reason={"type": "length", "length": 8}), choice(finish_reason="length")),
    ],
)
def test_null_and_missing_fields_say_nothing(fields, said):
    assert read_chunk(json.dumps({"choices": [{"index": 0, **fields}]})).choices == (said,)


@pytest.mark.parametrize(
    ("chunk", "tokens"),
    [
        ({"choices": None, "usage": {"completion_tokens": 2}}, 2),
        ({"choices": [], "usage": {"completion_tokens": 0}, "error": None}, 0),
        ({"usage": {"completion_tokens": None, "prompt_tokens": None}}, None),
        ({"usage": None, "error": "", "detail": None, "errors": []}, None),
        ({"usage": {}, "error": {"message": None, "code": None}}, None),
        ({"type": "ping"}, None),
        ({}, None),
    ],
)
def test_chunks_without_choices(chunk, tokens):
    read = read_chunk(json.dumps(chunk))
    assert (read.choices, read.completion_tokens) == ((), tokens)


FULL = "KV cache is full"
ERRORS = [
    {"error": FULL},
    {"error": {"message": FULL, "code": 400}},
    {"error": "Internal Server Error", "message": FULL, "status": 500},  # Spring's.
    {"error": True, "message": FULL},
    {"errors": [{"message": FULL}]},
    {"object": "error", "message": FULL, "code": 50001},  # FastChat's, and vLLM's of old.
    {"type": "error", "data": FULL},
    {"status": "error", "reason": FULL},
    {"detail": FULL},  # FastAPI's.
    {"detail": [{"loc": ["body"], "msg": FULL}]},
    {"message": FULL, "code": 500},
    {"error": {"message": FULL}, "choices": [{"text": "a"}]},
    {"choices": [{"text": "", "finish_reason": {"type": "abort", "message": FULL}}]},  # SGLang's.
]


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_every_form_of_an_error_is_one(error):
    with pytest.raises(AnswerError, match=FULL):
        read_chunk(json.dumps(error))


@pytest.mark.parametrize("error", ERRORS[:-1], ids=str)
def test_a_body_that_is_no_stream_tells_the_same_errors(error):
    body = json.dumps(error, indent=1)
    assert is_error(body) and FULL in body_error(body)


@pytest.mark.parametrize("data", [FULL, json.dumps({"code": 500, "details": FULL}), json.dumps({"choices": FULL})])
def test_an_event_of_the_kind_error_is_one_whatever_it_holds(data):
    with pytest.raises(AnswerError, match=FULL):
        read_chunk(data, "error")


@pytest.mark.parametrize("reason", ["error", "abort", "cancelled"])
def test_an_answer_that_was_given_up_is_an_error(reason):
    with pytest.raises(AnswerError, match=f"finish_reason.*{reason}"):
        read_chunk(json.dumps({"choices": [{"text": "a", "finish_reason": reason}]}))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("5", "a JSON object; got 5"),
        ('"x"', 'a JSON object; got "x"'),
        ("[1, 2]", r"a JSON object; got \[1, 2\]"),
        ("null", "a JSON object; got null"),
        ('{"choices": [{"text": "a', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("hello", "no JSON: 'hello'"),
        ('{"choices": 5}', "a list of objects; got 5"),
        ('{"choices": {"text": "a"}}', "a list of objects"),
        ('{"choices": [null]}', "a list of objects"),
        ('{"choices": [{"delta": "a"}]}', "delta is an object"),
        ('{"choices": [{"text": 5}]}', "text is a string; got 5"),
        ('{"usage": {"completion_tokens": "many"}}', "is a count"),
        ('{"usage": {"completion_tokens": -1}}', "is a count"),
        ('{"usage": {"completion_tokens": true}}', "is a count"),
    ],
)
def test_what_is_no_chunk_is_named(data, why):
    with pytest.raises(AnswerError, match=why):
        read_chunk(data)


def test_events_of_unknown_kinds_are_passed_over():
    assert read_chunk("pong", "ping").choices == ()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "no token was sent"),
        (
            "<!DOCTYPE html><html><head><style>p {}</style></head><body><p>Bad   gateway</p></body></html>",
            "'Bad gateway'",
        ),
        ("it is raining", "no token, but 'it is raining'"),
        ('{"choices": [{"text": "a"}]}', "in one piece"),
        ("[1]", "no token, but '[1]'"),
    ],
)
def test_why_a_body_is_no_stream(body, why):
    assert why in body_error(body) and not is_error(body)


def test_what_is_shown_is_one_short_line():
    assert shorten("a\n\n  b") == "a b" and shorten("2 < 3 > 1") == "2 < 3 > 1"
    assert len(shorten("x" * 10_000)) == SHOWN_CHARACTERS + 2
