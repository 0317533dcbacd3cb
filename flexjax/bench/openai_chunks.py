"""What one chunk of an OpenAI-compatible stream says, of a completion or of a chat, by a server of any make.

A field that is null or missing says nothing, and an unknown one is passed over. An error is found in each of the forms
in which servers tell one after a status of 200.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

UNKNOWN_TOKEN = -1  # Stands for a token whose id the server does not tell.
SHOWN_CHARACTERS = 500  # The most that an error message quotes of a server's words.

_FAILED = ("error", "abort", "aborted", "cancelled")  # Finish reasons of an answer that is not whole.


class AnswerError(Exception):
    """An answer cannot be used; the message says what the server sent."""


class Choice(NamedTuple):
    text: str
    token_ids: tuple[int, ...] | None  # None where the server does not tell which tokens, or how many, these are.
    finish_reason: str  # Empty before the end.
    opens: bool  # Only names the role that speaks: holds no token.


class Chunk(NamedTuple):
    choices: tuple[Choice, ...]
    completion_tokens: int | None  # Tokens in the whole answer so far.
    unread: str = ""  # Its data, where it says neither: shown if the answer fails.


def read_chunk(data: str, kind: str = "message") -> Chunk:
    """The chunk in an event's data; AnswerError where it tells an error or is no chunk."""
    if kind == "error":
        raise AnswerError(f"the server reported {shorten(data) or 'an error without a word'}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        if kind != "message":  # A ping, say, of a kind that is not ours.
            return Chunk((), None)
        raise AnswerError(f"a chunk is no JSON: {shorten(data)!r}") from error
    if not isinstance(value, dict):
        raise AnswerError(f"a chunk is a JSON object; got {shorten(data)}")
    if tells_error(value):
        raise AnswerError(f"the server reported {_said(value)}")
    choices = [] if value.get("choices") is None else value["choices"]
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise AnswerError(f"choices is a list of objects; got {shorten(json.dumps(choices))}")
    usage = _completion_tokens(value.get("usage"))
    return Chunk(
        tuple(_choice(choice) for choice in choices), usage, data if value and not choices and usage is None else ""
    )


def tells_error(value: dict[str, Any]) -> bool:
    """Whether an object from the server is an error rather than a chunk or an answer."""
    if _says(value.get("error")) or _says(value.get("errors")):
        return True
    if "error" in (value.get("object"), value.get("type"), value.get("status")):
        return True
    # FastAPI says `detail`, others `message`: neither stands beside choices or usage in any chunk.
    is_chunk = value.get("choices") is not None or value.get("usage") is not None
    return not is_chunk and bool(value.get("detail") or value.get("details") or value.get("message"))


def is_error(body: str) -> bool:
    """Whether lines that are no event tell an error."""
    value = _parsed(body)
    return isinstance(value, dict) and tells_error(value)


def body_error(body: str) -> str:
    """Why the body of an answer with status 200 that holds no event is no stream."""
    value = _parsed(body)
    if isinstance(value, dict) and tells_error(value):
        return f"the server reported {_said(value)}"
    if isinstance(value, dict) and value.get("choices"):
        return "the server sent its answer in one piece, not as the stream that was asked for, so no token has a time"
    return f"the server sent no token, but {shorten(body)!r}" if body.strip() else "no token was sent"


def _parsed(body: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def shorten(text: str) -> str:
    """What a server said, in one line, without the tags of HTML, at most SHOWN_CHARACTERS long."""
    if re.match(r"\s*<(!doctype|html|head|body|h\d|p|center)\b", text, re.IGNORECASE):
        text = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>|<[^>]*>", " ", text)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"


def _says(error: Any) -> bool:
    return any(part is not None for part in error.values()) if isinstance(error, dict) else bool(error)


def _said(value: dict[str, Any]) -> str:
    error = value.get("error")
    return shorten(json.dumps(error if isinstance(error, dict) and error else value, ensure_ascii=False))


def _choice(choice: dict[str, Any]) -> Choice:
    finish_reason = choice.get("finish_reason")
    # SGLang's own form is {"type": "abort", "message": …}.
    kind = finish_reason.get("type") if isinstance(finish_reason, dict) else finish_reason
    if kind in _FAILED:
        raise AnswerError(f"the server ended the answer with finish_reason {shorten(json.dumps(finish_reason))}")
    delta = choice.get("delta") or {}
    if not isinstance(delta, dict):
        raise AnswerError(f"delta is an object; got {shorten(json.dumps(delta))}")
    text = _text(choice) or (_text(delta) if delta else "")
    told = _token_ids(choice)
    opens = bool(delta.get("role")) and not text and not told and not kind
    return Choice(text, told, str(kind or ""), opens)


def _text(holder: dict[str, Any]) -> str:
    # vLLM sends the same reasoning under two names.
    reasoning = _string(holder, "reasoning_content") or _string(holder, "reasoning")
    return reasoning + (_string(holder, "text") or _string(holder, "content"))


def _string(holder: dict[str, Any], name: str) -> str:
    value = holder.get(name)
    if isinstance(value, list):  # Parts, as Mistral's server sends them: [{"type": "text", "text": …}].
        value = "".join(_string(part, "text") for part in value if isinstance(part, dict))
    if value is not None and not isinstance(value, str):
        raise AnswerError(f"{name} is a string; got {shorten(json.dumps(value))}")
    return value or ""


def _token_ids(choice: dict[str, Any]) -> tuple[int, ...] | None:
    """The tokens that the choice tells of, by `token_ids` or by `logprobs` of a completion or of a chat."""
    ids = choice.get("token_ids")
    if isinstance(ids, list) and (ids or not choice.get("logprobs")):
        return tuple(token if isinstance(token, int) and 0 <= token < 2**31 else UNKNOWN_TOKEN for token in ids)
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict):
        listed = logprobs.get("tokens")
        if listed is None:
            listed = logprobs.get("content")
        if isinstance(listed, Sequence) and not isinstance(listed, str):
            return (UNKNOWN_TOKEN,) * len(listed)
    return None


def _completion_tokens(usage: Any) -> int | None:
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if count is None:
        return None
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise AnswerError(f"usage.completion_tokens is a count; got {shorten(json.dumps(count))}")
    return count
