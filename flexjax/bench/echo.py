"""Log-probabilities of a text from a server's completions API: the prompt is echoed with them.

The request is that of OpenAI's completions with `echo` and `logprobs`. Answers come in two forms, and a server may send
both: `logprobs.token_logprobs`, a number for each token of the prompt and of the continuation, null for the first; and
vLLM's `prompt_logprobs`, for each token of the prompt an object of ids and their log-probabilities.
"""

import json
from typing import Any

from flexjax.bench.openai_chunks import shorten
from flexjax.bench.quality import Window
from flexjax.refusal import Unsupported


def body(window: Window, model: str) -> dict[str, Any]:
    """What is sent. One token is generated: some servers refuse to make none."""
    prompt = [*window.context, *window.continuation]
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": 1,
        "echo": True,
        "logprobs": 1,
        "temperature": 0,
        "stream": False,
    }


def read(answer: str, window: Window) -> list[float]:
    """The natural log-probabilities of the continuation's tokens. Unsupported for an answer without them."""
    try:
        choice = json.loads(answer)["choices"][0]
        told, by_id = choice.get("logprobs"), choice.get("prompt_logprobs")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise Unsupported(f"the server's answer has no choices: {shorten(answer)}") from error
    if isinstance(by_id, list):  # First, because it names the tokens.
        found = _by_id(by_id, window)
    elif isinstance(told, dict) and isinstance(told.get("token_logprobs"), list):
        found = _in_order(told["token_logprobs"], window)
    else:
        raise Unsupported(f"the server echoes no log-probabilities; it gave {shorten(answer)}")
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in found):
        raise Unsupported(f"a log-probability is a number; the server gave {shorten(json.dumps(found))}")
    return [float(x) for x in found]


def _in_order(listed: list[Any], window: Window) -> list[Any]:
    """The token that was generated comes last, where it comes."""
    n = len(window.context) + len(window.continuation)
    if len(listed) not in (n, n + 1):
        raise Unsupported(
            f"the server must echo a log-probability for each of {n} tokens, and give one for that which it made; it "
            f"gave {len(listed)}"
        )
    return listed[len(window.context) : n]


def _by_id(listed: list[Any], window: Window) -> list[Any]:
    n = len(window.context) + len(window.continuation)
    if len(listed) != n:
        raise Unsupported(f"the server must give prompt_logprobs for {n} tokens; it gave {len(listed)}")
    entries = zip(window.continuation, listed[len(window.context) :], strict=True)
    found = [entry.get(str(token)) if isinstance(entry, dict) else None for token, entry in entries]
    return [entry.get("logprob") if isinstance(entry, dict) else None for entry in found]
