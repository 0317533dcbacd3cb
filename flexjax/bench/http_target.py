"""Any server that speaks the OpenAI completions API, measured by the same code as our own engine.

Requests go out as streaming `POST {url}/v1/completions` over connections that are kept. A chunk's time is the moment
its bytes were read. How many tokens it holds is told by its `token_ids`, its `logprobs` or a running `usage`; where it
is not, a chunk counts as one and the total is put right at the end by the server's `usage`, or without that by
tokenising the whole text again. `describe` says which of these was used.
"""

import asyncio
import collections
import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Literal

import httpcore

from flexjax import shipped
from flexjax.bench import echo
from flexjax.bench.answer import Answer
from flexjax.bench.connections import FAILURES, Connections
from flexjax.bench.openai_chunks import AnswerError, body_error, is_error, read_chunk, shorten
from flexjax.bench.quality import Window
from flexjax.bench.result import StartUp
from flexjax.bench.sse import EventParser, ServerEvent
from flexjax.bench.target import TargetStats
from flexjax.data import open_tokenizer
from flexjax.engine import Request
from flexjax.refusal import Refusal, Unsupported

_REST_S = 1.0  # For what a server sends after [DONE]; without the answer's end its connection cannot be kept.
_BODY_BYTES = 100_000  # Read of an answer that is no stream.
_ECHO_BYTES = 10_000_000  # Read of one that holds a prompt's log-probabilities, some 100 bytes a token.
_ECHOES = 8  # Prompts in flight at once whose log-probabilities are asked for.


@dataclasses.dataclass(frozen=True)
class HttpConfig:
    url: str = ""  # Without /v1, e.g. http://127.0.0.1:8000; there is no default server.
    model: str = ""  # Name sent with each request; empty asks /v1/models, which must then name one alone.
    tokenizer: str = ""  # Model directory or tokenizer.json: to send text, and to count tokens as a last resort.
    prompt: Literal["ids", "text"] = "ids"
    ignore_eos: bool = True  # Sends `ignore_eos`, which vLLM, SGLang, llama.cpp and flexjax know; OpenAI refuses it.
    timeout_s: float = 600.0  # Of one request.
    stall_s: float = 50.0  # From token to token. After 60 s without an event a whole run is given up.
    connections: int = 16  # Open before each measured run; more where more requests were in flight at once before.
    ca_file: str = ""  # PEM file of the certificates that a private https server is signed with.

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise Refusal(f"A target's url begins with http:// or https://; got {self.url!r}.")
        if self.prompt == "text" and not self.tokenizer:
            raise Refusal("To send prompts as text a tokenizer is needed: set tokenizer to the model's directory.")
        if self.timeout_s <= 0 or self.stall_s <= 0:
            raise Refusal(f"timeout_s and stall_s must be positive; got {self.timeout_s} and {self.stall_s}.")
        if self.connections < 0:
            raise Refusal(f"connections is a count of 0 or more; got {self.connections}.")


class HttpTarget:
    """A URL. One thread with an event loop holds all connections; `submit` only hands it the request."""

    def __init__(self, config: HttpConfig, name: str = "", api_key: str | None = None):
        self.name = name or config.url
        self.config = config
        self._tokenizer = open_tokenizer(shipped.model(config.tokenizer)) if config.tokenizer else None
        self._connections = Connections(config.url, _headers(api_key), config.ca_file)
        self._counted_by: collections.Counter[str] = collections.Counter()
        self._model = config.model
        self._server = ""
        self._tasks: set[asyncio.Task] = set()
        self._thread: threading.Thread | None = None

    def start(self) -> StartUp:
        """Connects; Refusal where no such server answers."""
        began = time.perf_counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flexjax-http", daemon=True)
        self._thread.start()
        self._do(self._connect())
        return StartUp(load_s=time.perf_counter() - began, compile_s=0.0)

    def prepare(self) -> None:
        """Opens connections, so that no request of the run that comes next has to.

        One that cannot be opened is left to the request that needs it, which then says why.
        """
        with contextlib.suppress(*FAILURES):
            self._do(self._connections.reopen(self.config.connections))

    def submit(self, request: Request) -> None:
        """Refusal for a request that does not say how many tokens it wants: servers differ in what they make then; for
        one with forced tokens, which the API does not have; and for one before `start` or after `stop`, which nobody
        would answer."""
        if request.params.max_tokens is None:
            raise Refusal("A request to a server behind a URL must have max_tokens; got None. Set a number.")
        if request.forced:
            raise Refusal(
                f"A server behind a URL chooses its own tokens; the request forces {len(request.forced)} on it. Leave "
                f"{self.name} out of loads that do."
            )
        if self._thread is None:
            raise Refusal("A request goes to a target that has been started and not stopped. Call start first.")
        self._loop.call_soon_threadsafe(self._begin, request)

    def continuation_logprobs(self, windows: Sequence[Window]) -> list[list[float]]:
        """The natural log-probability of each token of each window's continuation, echoed by the server.

        Unsupported where it echoes none, and where prompts go out as text, which the server cuts into tokens of its
        own. RuntimeError where it does not answer at all.
        """
        if self.config.prompt == "text":
            raise Unsupported("prompts go out as text, whose tokens the server chooses; set http.prompt to 'ids'")
        try:
            return self._do(self._echo_all(windows))
        except (*FAILURES, TimeoutError) as error:
            raise RuntimeError(f"{self.name} could not echo a prompt: {_brief(error)}") from error

    def stop(self) -> None:
        if self._thread is None:
            return
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._thread = None
        self._loop.close()

    def describe(self) -> dict[str, Any]:
        return {
            "software": self._server or "unknown (no Server header)",
            "url": self.config.url,
            "served_model": self._model,
            "prompt_sent_as": self.config.prompt,
            "token_count_from": ", ".join(f"{how} ({n})" for how, n in self._counted_by.most_common()),
            "connections_opened_by_requests": self._connections.opened_by_requests,
            "requests_repeated": self._connections.repeated,
        }

    def stats(self) -> TargetStats:
        """Empty: what happens inside is not seen from here."""
        return TargetStats()

    def _do[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self.config.timeout_s):
                if self._model:
                    await self._connections.open(1)
                else:
                    self._model = await self._ask_model()
        except (*FAILURES, TimeoutError) as error:
            raise Refusal(
                f"No server answers at {self.config.url}: {_brief(error)}. "
                "Start the server first, or correct the url (without /v1)."
            ) from error

    async def _ask_model(self) -> str:
        async with self._connections.request("GET", "/v1/models") as response:
            self._note(response)
            body = await _text(response)
        if response.status != 200:
            raise Refusal(_no_model(self.config.url, f"HTTP {response.status}: {shorten(body)}"))
        names = _model_names(body)
        if len(names) != 1:
            raise Refusal(_no_model(self.config.url, ", ".join(names) if names else shorten(body) or "nothing"))
        return names[0]

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connections.close()
        # asyncio closes the generator of an answer that was not read to its end in a task of its own.
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        await self._loop.shutdown_asyncgens()

    async def _echo_all(self, windows: Sequence[Window]) -> list[list[float]]:
        free = asyncio.Semaphore(_ECHOES)

        async def one(window: Window) -> list[float]:
            async with free, asyncio.timeout(self.config.timeout_s):
                return await self._echo(window)

        first = [await one(window) for window in windows[:1]]  # A server that cannot is asked only once.
        tasks = [asyncio.create_task(one(window)) for window in windows[1:]]
        try:
            return [*first, *await asyncio.gather(*tasks)]
        finally:
            for task in tasks:
                task.cancel()

    async def _echo(self, window: Window) -> list[float]:
        body = json.dumps(echo.body(window, self._model)).encode()
        async with self._connections.request("POST", "/v1/completions", body) as response:
            self._note(response)
            answer = await _text(response, _ECHO_BYTES)
        if response.status != 200:
            raise Unsupported(f"the server does not echo: HTTP {response.status}: {shorten(answer)}")
        return echo.read(answer, window)

    def _begin(self, request: Request) -> None:
        task = self._loop.create_task(self._serve(request))
        self._tasks.add(task)  # The loop itself keeps weak references only.
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: Request) -> None:
        answer = Answer(request)
        error = "the client failed; its log has the traceback"  # Stays only where a fault of ours goes past the rest.
        try:
            async with asyncio.timeout(self.config.timeout_s):
                await self._read(request, answer)
            error = ""
        except TimeoutError:
            error = f"not done within timeout_s={self.config.timeout_s:g} s"
        except asyncio.CancelledError:
            error = "the target was stopped"
        except AnswerError as failure:
            error = str(failure)
        except FAILURES as failure:
            error = f"the connection failed after {answer.progress}: {_brief(failure)}"
        finally:
            answer.end(error)

    async def _read(self, request: Request, answer: Answer) -> None:
        body = json.dumps(self._body(request)).encode()
        async with self._connections.request("POST", "/v1/completions", body) as response:
            self._note(response)
            if response.status != 200:
                said = shorten(await _text(response)) or "no word of why"
                raise AnswerError(f"HTTP {response.status} from {self.config.url}: {said}")
            stall = asyncio.timeout(None)
            try:
                async with stall:
                    await self._read_events(response, answer, stall)
            except TimeoutError:
                if not stall.expired():
                    raise
                stalled = f"the stream stalled for stall_s={self.config.stall_s:g} s after {answer.progress}"
                raise AnswerError(stalled) from None

    async def _read_events(self, response: httpcore.Response, answer: Answer, stall: asyncio.Timeout) -> None:
        parser = EventParser()
        pieces = response.aiter_stream()
        async for piece in pieces:
            now = time.perf_counter()
            done = _take(parser.feed(piece, now), answer)
            if not answer.empty:  # Before its first token a request may wait for long.
                stall.reschedule(self._loop.time() + self.config.stall_s)
            if done:
                self._finish(answer, parser)
                stall.reschedule(None)
                with contextlib.suppress(*FAILURES, TimeoutError):  # The answer is whole: only its connection is lost.
                    async with asyncio.timeout(_REST_S):
                        async for _ in pieces:
                            pass
                return
        _take(parser.close(time.perf_counter()), answer)
        self._finish(answer, parser)

    def _finish(self, answer: Answer, parser: EventParser) -> None:
        beside = parser.stray or answer.unread
        if answer.empty or is_error(parser.stray):
            raise AnswerError(body_error(beside))
        try:
            how = answer.settle(self._tokenizer)
        except AnswerError as error:
            raise AnswerError(f"{error}; the server also sent {shorten(beside)!r}" if beside else str(error)) from error
        self._counted_by[how] += 1
        answer.end()

    def _note(self, response: httpcore.Response) -> None:
        if not self._server:
            self._server = dict(response.headers).get(b"server", b"").decode(errors="replace")

    def _body(self, request: Request) -> dict[str, Any]:
        params = request.params
        ids = list(request.prompt_token_ids)
        text = self._tokenizer.decode(ids) if self.config.prompt == "text" and self._tokenizer else None
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": ids if text is None else text,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if params.seed is not None:
            body["seed"] = params.seed
        if params.ignore_eos and self.config.ignore_eos:
            body["ignore_eos"] = True
        if params.stop:
            body["stop"] = list(params.stop)
        return body


def _take(events: Iterable[ServerEvent], answer: Answer) -> bool:
    """Whether [DONE] was among the events."""
    for event in events:
        if event.data.strip() == "[DONE]":
            answer.finish()
            return True
        answer.take(read_chunk(event.data, event.kind), event.time)
    return False


async def _text(response: httpcore.Response, most_bytes: int = _BODY_BYTES) -> str:
    """The beginning of an answer that is no stream."""
    body = b""
    async for piece in response.aiter_stream():
        body += piece
        if len(body) > most_bytes:
            break
    return body[:most_bytes].decode("utf-8-sig", errors="replace")


def _model_names(body: str) -> list[str]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return []
    if isinstance(value, dict):
        value = value.get("data") or value.get("models")
    listed = value if isinstance(value, list) else []
    names = [model.get("id") or model.get("name") if isinstance(model, dict) else model for model in listed]
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and name))


def _no_model(url: str, seen: str) -> str:
    return (
        f"The server at {url} must name one model at /v1/models where none is configured; it gave {seen}. "
        "Set http.model to the name that is to be measured, or correct the url (without /v1)."
    )


def _headers(api_key: str | None) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"Content-Type", b"application/json"),
        (b"Accept", b"text/event-stream, application/json"),
        (b"Accept-Encoding", b"identity"),  # Compressed, chunks would come when the compressor likes.
    ]
    if api_key:
        key = api_key.strip()
        if not key.isascii() or not key.isprintable():
            raise Refusal("The server's key must be printable ASCII, as a header must; it holds another character.")
        headers.append((b"Authorization", f"Bearer {key}".encode()))
    return headers


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
