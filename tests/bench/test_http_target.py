"""Against a small server of the standard library that streams as OpenAI-compatible ones do."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flexjax.bench import validity
from flexjax.bench.http_target import HttpConfig, HttpTarget
from flexjax.bench.loadgen import run_loadgen
from flexjax.bench.openai_chunks import UNKNOWN_TOKEN
from flexjax.bench.scenario import Scenario


class Server(ThreadingHTTPServer):
    """`style` says how the count is told: usage, logprobs, nothing, wrong; or how the server fails."""

    daemon_threads = True
    request_queue_size = 64  # Of 5, the default, a burst loses connections.

    def __init__(self, style: str = "usage", tokens_per_chunk: int = 1):
        super().__init__(("127.0.0.1", 0), Handler)
        self.style, self.tokens_per_chunk = style, tokens_per_chunk
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.release = threading.Event()  # A stuck answer waits for it.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._json(200, {"data": [{"id": "tiny"}]} if self.path == "/v1/models" else {})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.headers.append(dict(self.headers))
        style = self.server.style
        if style == "refuses":
            return self._json(400, {"error": {"message": "ignore_eos is not known here"}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        left = body["max_tokens"]
        while left:
            count = min(left, self.server.tokens_per_chunk)
            left -= count
            choice = {"index": 0, "text": "a" * count, "finish_reason": None if left else "length"}
            if style == "logprobs":
                choice["logprobs"] = {"tokens": ["a"] * count}
            self._event({"choices": [choice]})
            if style == "breaks":
                return self._event({"error": {"message": "out of memory"}})
            if style == "sticks":
                self.server.release.wait(10)
                return None
            time.sleep(0.001)
        if style in ("usage", "wrong"):
            total = body["max_tokens"] if style == "usage" else 1
            self._event({"choices": [], "usage": {"completion_tokens": total}})
        self.wfile.write(b"data: [DONE]\n\n")
        return None

    def _event(self, value: dict) -> None:
        self.wfile.write(f": a comment\ndata: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: int, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def connect():
    """connect(style, **config) → (server, started target)."""
    opened = []

    def make(style="usage", tokens_per_chunk=1, api_key=None, **config):
        server = Server(style, tokens_per_chunk)
        threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()
        target = HttpTarget(HttpConfig(server.url, **config), api_key=api_key)
        target.start()
        opened.append((server, target))
        return server, target

    yield make
    for server, target in opened:
        server.release.set()
        target.stop()
        server.shutdown()
        server.server_close()


def test_a_request_goes_out_whole_and_comes_back_as_events(connect, ask):
    server, target = connect(api_key="secret")
    began = time.perf_counter()
    listener = ask(target, [3, 4, 5], max_tokens=6, seed=7)
    assert listener.wait().finish_reason == "length"
    assert [e.kind for e in listener.events] == ["token"] * 6 + ["done"]
    assert all(e.token_ids == (UNKNOWN_TOKEN,) and e.text == "a" for e in listener.events[:-1])
    times = [began, *(e.time for e in listener.events), time.perf_counter()]
    assert times == sorted(times)
    (body,) = server.bodies
    assert body["prompt"] == [3, 4, 5] and body["model"] == "tiny" and body["ignore_eos"] is True
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (6, 0, 7)
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in str(target.describe())


@pytest.mark.parametrize(
    ("style", "tokens_per_chunk", "source", "events"),
    [
        ("usage", 1, "usage (1)", 8),
        ("usage", 4, "usage (1)", 3),  # Two chunks, and what usage says they held more than one each.
        ("logprobs", 4, "token_ids or logprobs (1)", 2),
        ("nothing", 4, "re-tokenised text (1)", 3),
    ],
)
def test_tokens_are_counted_by_the_best_that_the_server_tells(
    connect, ask, tiny_directory, style, tokens_per_chunk, source, events
):
    _, target = connect(style, tokens_per_chunk, tokenizer=str(tiny_directory))
    listener = ask(target, [1], max_tokens=8)
    listener.wait()
    assert len(listener.token_ids) == 8
    assert sum(e.kind == "token" for e in listener.events) == events
    assert target.describe()["token_count_from"] == source


@pytest.mark.parametrize(
    ("style", "config", "reason"),
    [
        ("refuses", {}, "HTTP 400.*ignore_eos is not known here"),
        ("breaks", {}, "out of memory"),
        ("wrong", {}, "usage says 1 tokens, 8 chunks held some"),
        ("nothing", {}, "set tokenizer to the model's directory"),
        ("sticks", {"timeout_s": 0.3}, "not done within timeout_s=0.3 s"),
    ],
)
def test_a_failure_is_the_requests_own_and_says_why(connect, ask, style, config, reason):
    _, target = connect(style, **config)
    end = ask(target, [1], max_tokens=8).wait()
    assert end.finish_reason == "error"
    assert re.search(reason, end.error), end.error


def test_prompts_go_out_as_text_where_asked(connect, ask, tiny_directory, byte_tokenizer):
    server, target = connect(prompt="text", tokenizer=str(tiny_directory / "tokenizer.json"), ignore_eos=False)
    ask(target, byte_tokenizer.encode("def f():").ids).wait()
    assert server.bodies[0]["prompt"] == "def f():" and "ignore_eos" not in server.bodies[0]


def test_stop_ends_what_is_in_flight(connect, ask):
    _, target = connect("sticks")
    listener = ask(target, [1])
    while not listener.events:
        time.sleep(0.01)
    target.stop()
    assert "stopped" in listener.wait().error


def test_it_is_measured_like_any_target(connect, items, tmp_path):
    _, target = connect()
    scenario = Scenario("Offline", queries=16)
    run = run_loadgen(scenario, items, target.submit, tmp_path)
    verdict = validity.check(
        scenario, run.timelines, faults=run.faults, compiles=0, loadgen=run.loadgen, limits_bind=True
    )
    assert verdict.reasons == ()
    assert all(t.scheduled_s is None and t.n_out == t.n_requested for t in run.timelines)


def test_bad_addresses_are_refused():
    with pytest.raises(ValueError, match="begins with http://"):
        HttpConfig("localhost:8000")
    with pytest.raises(ValueError, match="a tokenizer is needed"):
        HttpConfig("http://127.0.0.1:1", prompt="text")
    with pytest.raises(ValueError, match="does not exist"):
        HttpTarget(HttpConfig("http://127.0.0.1:1", tokenizer="/nowhere"))
    target = HttpTarget(HttpConfig("http://127.0.0.1:1"))
    with pytest.raises(ValueError, match="Start the server first"):
        target.start()
    target.stop()
