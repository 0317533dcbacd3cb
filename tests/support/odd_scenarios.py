"""What the odd server plays, by name; each completion has two tokens, "a" and "b", where nothing else is said."""

import json

from odd_server import CUT, DONE, Reply, data, token, usage

SCRIPTS = {
    "ASCII": "ab",
    "Arabic": "السلام عليكم",
    "Chinese": "模型很快",
    "joined emoji": "👩‍👩‍👧‍👦🏳️‍🌈",
    "combining marks": "e\u0301o\u0308n\u0303",
    "separators": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei",
}

GOOD = [token("a"), token("b", finish_reason="length"), usage(2), DONE]
WHOLE = b"".join(GOOD)
FULL = "KV cache is full"


def _in_bytes(stream: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in stream]


def _script(text: str) -> list[bytes]:
    """Byte by byte: each character and each line end is cut between two reads."""
    return _in_bytes(
        token(text) + b"\r" + token(text, finish_reason="length").replace(b"\n", b"\r\n") + usage(2) + DONE
    )


# Answers that are right, though odd: name → steps.
RIGHT = {
    "good": GOOD,
    "byte by byte": _in_bytes(WHOLE),
    "in one piece": [WHOLE],
    "CR": [WHOLE.replace(b"\n", b"\r")],
    "CRLF in two reads": [WHOLE.replace(b"\n", b"\r\n")[:100], WHOLE.replace(b"\n", b"\r\n")[100:]],
    "no blank after data:": [WHOLE.replace(b"data: ", b"data:")],
    "comments and kinds": [
        b"\xef\xbb\xbf: ping\n\nevent: message\n",
        GOOD[0],
        b": ping\n\n",
        *GOOD[1:3],
        b": x\n\n" + DONE,
    ],
    "data on several lines": [b'data: {"choices": [\ndata: {"text": "a"},\ndata: {"text": "b"}]}\n\n', usage(2), DONE],
    "no blank line at the end": [*GOOD[:2], usage(2).rstrip()],
    "no DONE": GOOD[:3],
    "blanks about DONE": [*GOOD[:3], b"data:   [DONE]  \n\n"],
    "no finish_reason": [token("a"), token("b"), usage(2), DONE],
    "nulls": [
        data({"choices": None, "error": None, "usage": None}),
        token("a", delta=None, logprobs=None, finish_reason=None, token_ids=None),
        data({"choices": [{"text": "b"}], "usage": {"completion_tokens": None, "prompt_tokens": None}}),
        data({"choices": None, "usage": {"completion_tokens": 2, "prompt_tokens_details": None}}),
        DONE,
    ],
    "a chat's chunks": [
        data({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
        data({"choices": [{"delta": {"content": "a"}}]}),
        data({"choices": [{"delta": {"content": "b"}}]}),
        data({"choices": [{"delta": {}, "finish_reason": "length"}]}),
        usage(2),
        DONE,
    ],
    "usage with the last chunk": [token("a"), data({"choices": [{"text": "b"}], "usage": {"completion_tokens": 2}})],
    "two tokens in a chunk": [token("ab"), usage(2), DONE],
    "unknown fields and kinds": [
        b"event: ping\ndata: pong\n\nid: 7\nretry: 5\n\n",
        data({"type": "ping", "x": {"y": 1}}),
        token("a", weather="fine"),
        *GOOD[1:],
    ],
    "words after DONE": [*GOOD, b": bye\n\n", token("c")],
    **{script: _script(text) for script, text in SCRIPTS.items()},
}

# Right as well, each framed in another way.
FRAMED = {
    "close": Reply(GOOD, "close"),
    "HTTP/1.0": Reply(GOOD, "http10"),
    "length": Reply(GOOD, "length"),
}

# Answers that are errors: name → (reply, what the request's error says).
WRONG = {
    "JSON error": (Reply([json.dumps({"error": {"message": FULL}}, indent=2).encode()], "length"), FULL),
    "event: error": (Reply([token(), b"event: error\n" + data({"code": 500, "details": FULL})]), FULL),
    "object: error": (Reply([data({"object": "error", "message": FULL}), DONE]), FULL),
    "data: error": (Reply([token(), data({"error": {"message": FULL}}), DONE]), FULL),
    "error as a string": (Reply([data({"error": FULL})]), FULL),
    "detail": (Reply([data({"detail": FULL})]), FULL),
    "an unknown form": (Reply([data({"status": "failed", "reason": FULL}), DONE]), FULL),
    "an unknown form after a token": (Reply([token(), data({"msg": FULL})]), f"ended after 1 of 2 tokens.*{FULL}"),
    "a list after a token": (Reply([token(), b'[{"error": "%s"}]' % FULL.encode()]), f"ended after 1 of 2.*{FULL}"),
    "llama.cpp's error": (Reply([token(), b'error: {"code":500,"message":"%s"}\n\n' % FULL.encode()]), FULL),
    "a line of JSON": (Reply([*GOOD[:1], b'{"error": "%s"}\n' % FULL.encode()]), FULL),
    "finish_reason error": (Reply([token("a", finish_reason="error")]), "finish_reason .error"),
    "400": (Reply([b'{"error": {"message": "%s"}}' % FULL.encode()], "length", "400 Bad Request"), f"HTTP 400.*{FULL}"),
    "429": (Reply([FULL.encode()], "close", "429 Too Many Requests", "text/plain"), f"HTTP 429.*{FULL}"),
    "502": (
        Reply([b"<html><body><h1>Bad Gateway</h1>" + b"<p>nginx</p>" * 9999], "length", "502 Bad Gateway", "text/html"),
        "HTTP 502.*: Bad Gateway nginx.* …$",
    ),
    "307": (Reply([b"elsewhere"], "length", "307 Temporary Redirect"), "HTTP 307"),
    "HTML": (Reply([b"<html><body>Please log in</body></html>"], "length"), "no token, but 'Please log in'"),
    "not streamed": (Reply([b'{"choices": [{"text": "ab"}]}'], "length"), "in one piece"),
    "empty": (Reply([]), "no token was sent"),
    "DONE alone": (Reply([DONE]), "no token was sent"),
    "a number": (Reply([token(), b"data: 5\n\n"]), "a JSON object; got 5"),
    "a string": (Reply([b'data: "x"\n\n']), 'a JSON object; got "x"'),
    "a list": (Reply([token(), b"data: [1]\n\n"]), r"a JSON object; got \[1\]"),
    "null": (Reply([b"data: null\n\n"]), "a JSON object; got null"),
    "no JSON": (Reply([b'data: {"choices": [{\n\n']), "no JSON"),
    "nested too deep": (Reply([b"data: " + b"[" * 100_000 + b"\n\n"]), "no JSON"),
    "choices of another kind": (Reply([data({"choices": "x"})]), "choices is a list"),
    "ends early": (Reply([token()]), "ended after 1 of 2 tokens"),
    "ends early with usage": (
        Reply([data({"choices": [{"text": "a"}], "usage": {"completion_tokens": 1}})]),
        "ended after 1 of 2 tokens, without finish_reason",
    ),
    "cut": (Reply([token(), b"data: {", CUT]), "failed after 1 of 2 tokens"),
    "cut in a close framing": (Reply([token(), b'data: {"choi'], "close"), "no JSON"),
    "cut at once": (Reply([CUT], "raw"), "failed after 0 of 2 tokens"),
    "no HTTP": (Reply([b"SSH-2.0-OpenSSH\r\n\r\n"], "raw"), "failed after 0 of 2 tokens"),
    "too many tokens": (Reply([token(), usage(10**12), DONE]), "usage says 1000000000000"),
    "stalls": (Reply([token(), 5.0]), "stalled for stall_s=0.2 s after 1 of 2 tokens"),
}

MODELS = {
    "": Reply([b'{"data": [{"id": "good"}]}'], "length"),
    "list": Reply([b'["good"]'], "length"),
    "named": Reply([b'{"models": [{"name": "good"}], "data": null}'], "length"),
    "404": Reply([b'{"detail": "Not Found"}'], "length", "404 Not Found"),
    "401": Reply([b'{"error": "who are you"}'], "length", "401 Unauthorized"),
    "null": Reply([b'{"object": "list", "data": null}'], "length"),
    "none": Reply([b'{"data": []}'], "length"),
    "several": Reply([b'{"data": [{"id": "big"}, {"id": "small"}]}'], "length"),
    "html": Reply([b"<html><body>Welcome</body></html>"], "length"),
    "nameless": Reply([b'{"data": [{"object": "model"}, null, 5]}'], "length"),
}
