"""Against a small server of the standard library that streams as OpenAI-compatible ones do, and against one that is
odd in every way known to us (tests/support/odd_scenarios.py)."""

import asyncio
import json
import re
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from odd_scenarios import FRAMED, GOOD, MODELS, RIGHT, SCRIPTS, WRONG
from odd_server import CUT, OddServer, Reply, tls_context

from flexjax.bench import validity
from flexjax.bench.http_target import HttpConfig, HttpTarget
from flexjax.bench.loadgen import run_loadgen
from flexjax.bench.openai_chunks import UNKNOWN_TOKEN
from flexjax.bench.quality import Window
from flexjax.bench.scenario import Scenario
from flexjax.engine.request import Request, SamplingParams
from flexjax.refusal import Refusal, Unsupported


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


def test_nothing_is_taken_before_the_start_or_after_the_stop(odd, begin, ask):
    never, stopped = HttpTarget(HttpConfig(odd.url)), begin(odd.url)
    stopped.stop()
    for target in (never, stopped):
        with pytest.raises(Refusal, match="Call start first"):
            ask(target, [1])


def test_stop_waits_for_what_the_loop_still_closes(odd, begin):
    target, closed = begin(odd.url), []

    async def close():  # As asyncio does with the generator of an answer that was not read to its end.
        await asyncio.sleep(0.05)
        closed.append(True)

    asyncio.run_coroutine_threadsafe(close(), target._loop)
    target.stop()
    assert closed


def test_it_is_measured_like_any_target(connect, items, tmp_path):
    _, target = connect()
    scenario = Scenario("Offline", queries=16)
    run = run_loadgen(scenario, items, target.submit, tmp_path)
    verdict = validity.check(scenario, run.timelines, faults=run.faults, compiles=0, loadgen=run.loadgen)
    assert verdict.reasons == ()
    assert all(t.scheduled_s is None and t.n_out == t.n_requested for t in run.timelines)


NO_ECHO = Reply([b'{"error": {"message": "Only no echo is supported"}}'], "length", "400 Bad Request")


def echoed(body: dict) -> Reply:
    """The log-probability of a token is a hundredth of its id below 0; a long list takes more than one read."""
    listed = [None, *(-i / 100 for i in body["prompt"][1:]), -99.0]
    answer = json.dumps({"choices": [{"text": "x" * 200_000, "logprobs": {"token_logprobs": listed}}]})
    return Reply([0.02, answer.encode()], "length", content_type="application/json")


@pytest.fixture(scope="module")
def completions():
    always = {name: Reply(steps) for name, steps in RIGHT.items()} | FRAMED
    always |= {name: reply for name, (reply, _) in WRONG.items()}
    other = Reply(GOOD)  # To the prompt [2].
    play = lambda reply: lambda body, before: other if body["prompt"] == [2] else reply
    return {name: play(reply) for name, reply in always.items()} | {
        "echoes": lambda body, before: echoed(body),
        "echoes once": lambda body, before: NO_ECHO if before else echoed(body),
        "never echoes": lambda body, before: NO_ECHO,
        "stale": lambda body, before: Reply([CUT], "raw") if before == 1 else Reply(GOOD),
    }


@pytest.fixture(scope="module")
def odd(completions):
    server = OddServer(completions, MODELS)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def odd_tls(completions, tmp_path_factory):
    """(server, the file of its certificate)"""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    context, certificate = tls_context(tmp_path_factory.mktemp("tls"))
    server = OddServer(completions, MODELS, context)
    server.start()
    yield server, str(certificate)
    server.stop()


@pytest.fixture
def begin():
    """begin(url, **config) → a started target that names its model."""
    started = []

    def make(url, model="good", **config):
        target = HttpTarget(HttpConfig(url, model=model, **config))
        started.append(target)
        target.start()
        return target

    yield make
    for target in started:
        target.stop()


@pytest.mark.parametrize("name", [*RIGHT, *FRAMED])
def test_odd_answers_are_read_right(odd, begin, ask, name):
    listener = ask(begin(odd.url, name), [1], max_tokens=2)
    end = listener.wait()
    assert (end.finish_reason, end.error) in (("length", ""), ("stop", "")), end
    assert listener.text == (2 * SCRIPTS[name] if name in SCRIPTS else "ab")
    assert len(listener.token_ids) == 2


@pytest.mark.parametrize("name", ["byte by byte", *SCRIPTS])
def test_so_are_those_over_tls(odd_tls, begin, ask, name):
    server, certificate = odd_tls
    listener = ask(begin(server.url, name, ca_file=certificate), [1], max_tokens=2)
    assert listener.wait().error == "" and listener.text == (2 * SCRIPTS[name] if name in SCRIPTS else "ab")


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_and_harms_no_other_request(odd, begin, ask, name):
    target = begin(odd.url, name, stall_s=0.2)
    bad, good = (ask(target, prompt, max_tokens=2) for prompt in ([1], [2]))
    end = bad.wait()
    assert end.finish_reason == "error" and [e.kind for e in bad.events].count("done") == 1
    assert re.search(WRONG[name][1], end.error, re.DOTALL), end.error
    assert len(end.error) < 700
    assert good.wait().error == "" and good.text == "ab"


def test_a_certificate_that_nobody_vouches_for_is_refused(odd_tls):
    target = HttpTarget(HttpConfig(odd_tls[0].url, model="good"))
    with pytest.raises(ValueError, match=r"No server answers.*(?i:certificate)"):
        target.start()
    target.stop()


@pytest.mark.parametrize("tls", [False, True])
def test_no_request_of_a_run_holds_a_handshake(odd, odd_tls, begin, ask, tls):
    server, certificate = odd_tls if tls else (odd, "")
    target = begin(server.url, connections=4, ca_file=certificate)
    ask(target, [1], max_tokens=2).wait()
    target.prepare()
    before = len(server.seen)
    for listener in [ask(target, [1], max_tokens=2) for _ in range(4)]:
        assert listener.wait().error == ""
    for _ in range(8):
        assert ask(target, [1], max_tokens=2).wait().error == ""
    assert len({seen.connection for seen in server.seen[before:]}) <= 5
    assert target.describe()["connections_opened_by_requests"] == 0


def test_a_stale_connection_fails_no_request_and_is_counted(odd, begin, ask):
    target = begin(odd.url, "stale")
    for _ in range(2):
        assert ask(target, [1], max_tokens=2).wait().error == ""
        target.prepare()  # Waits until the connection is back in its place.
    assert target.describe()["requests_repeated"] == 1


def test_an_idle_target_asks_nothing_and_models_only_without_a_model(odd, begin):
    before = len(odd.seen)
    target = begin(odd.url)
    target.prepare()
    assert len(odd.seen) == before
    assert begin(odd.url, "").describe()["served_model"] == "good"
    assert [seen.path for seen in odd.seen[before:]] == ["/v1/models"]


WINDOWS = [Window((1, 2), (3 + i, 4), 2) for i in range(20)]


def test_log_probabilities_of_a_text_are_echoed(odd, begin):
    target = begin(odd.url, "echoes")
    assert target.continuation_logprobs(WINDOWS) == [[-(3 + i) / 100, -0.04] for i in range(20)]
    assert target.continuation_logprobs([]) == []
    seen = odd.of("echoes")
    assert sorted(s.body["prompt"] for s in seen) == [[1, 2, 3 + i, 4] for i in range(20)]
    assert 1 < len({s.connection for s in seen}) <= 8


def test_a_server_that_does_not_echo_is_asked_once(odd, begin):
    with pytest.raises(Unsupported, match="does not echo: HTTP 400: .*Only no echo is supported"):
        begin(odd.url, "never echoes").continuation_logprobs(WINDOWS)
    assert len(odd.of("never echoes")) == 1
    with pytest.raises(Unsupported, match="does not echo"):
        begin(odd.url, "echoes once").continuation_logprobs(WINDOWS)
    with pytest.raises(RuntimeError, match="could not echo a prompt") as failed:
        begin(odd.url, "cut at once").continuation_logprobs(WINDOWS)
    assert not isinstance(failed.value, Unsupported)


def test_prompts_that_go_out_as_text_have_no_log_probabilities_of_known_tokens(connect, tiny_directory):
    server, target = connect(prompt="text", tokenizer=str(tiny_directory))
    with pytest.raises(Unsupported, match=r"set http\.prompt to 'ids'"):
        target.continuation_logprobs(WINDOWS)
    assert server.bodies == []


def test_forced_tokens_are_refused(odd, begin):
    with pytest.raises(Refusal, match="chooses its own tokens; the request forces 2"):
        begin(odd.url).submit(Request("r", (1,), SamplingParams(max_tokens=2), forced=(3, 4)))


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/list", "/named/v1"])
def test_the_one_model_that_a_server_names_is_taken(odd, begin, path):
    assert begin(odd.url + path, "").describe()["served_model"] == "good"


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("404", "HTTP 404.*Not Found"),
        ("401", "HTTP 401.*who are you"),
        ("null", "null"),
        ("none", r"it gave {.data.: \[\]}"),
        ("several", "it gave big, small"),
        ("html", "it gave Welcome"),
        ("nameless", "it gave {"),
    ],
)
def test_odd_lists_of_models_are_refused_with_what_was_seen(odd, begin, path, seen):
    with pytest.raises(Refusal, match=f"(?s){seen}.*Set http.model"):
        begin(f"{odd.url}/{path}", "")


def test_a_key_that_no_header_can_hold_is_refused_unseen():
    HttpTarget(HttpConfig("http://127.0.0.1:1"), api_key="from a file\n")
    with pytest.raises(Refusal, match="printable ASCII") as refused:
        HttpTarget(HttpConfig("http://127.0.0.1:1"), api_key="sécret")
    assert "cret" not in str(refused.value)


def test_bad_addresses_are_refused():
    with pytest.raises(ValueError, match="begins with http://"):
        HttpConfig("localhost:8000")
    with pytest.raises(ValueError, match="a tokenizer is needed"):
        HttpConfig("http://127.0.0.1:1", prompt="text")
    with pytest.raises(ValueError, match="does not exist"):
        HttpTarget(HttpConfig("http://127.0.0.1:1", tokenizer="/nowhere"))
    for model in ("", "named"):
        target = HttpTarget(HttpConfig("http://127.0.0.1:1", model=model))
        with pytest.raises(ValueError, match="Start the server first"):
            target.start()
        target.stop()
