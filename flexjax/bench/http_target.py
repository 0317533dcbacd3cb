"""Any server that speaks the OpenAI completions API, measured by the same code as our own engine.

Requests go out as streaming `POST {url}/v1/completions`. A chunk's time is the moment its line was
read. How many tokens it holds is told by its `token_ids` or `logprobs`; where it is not, a chunk with
text counts as one and the total is put right at the end by the server's `usage`, or without that by
tokenising the whole text again. `describe` says which of these was used.
"""

import asyncio
import collections
import dataclasses
import json
import threading
import time
from typing import Any, Literal

import httpx
from tokenizers import Tokenizer

from flexjax import shipped
from flexjax.bench.result import StartUp
from flexjax.bench.target import TargetStats
from flexjax.engine.request import FinishReason, Request, TokenEvent
from flexjax.refusal import Refusal

UNKNOWN_TOKEN = -1  # Stands in an event for a token whose id the server does not tell.


@dataclasses.dataclass(frozen=True)
class HttpConfig:
    url: str = ""  # Without /v1, e.g. http://127.0.0.1:8000; there is no default server.
    model: str = ""  # Name sent with each request; empty asks /v1/models for the first.
    tokenizer: str = ""  # Model directory or tokenizer.json: to send text, and to count tokens as a last resort.
    prompt: Literal["ids", "text"] = "ids"
    ignore_eos: bool = True  # Sends `ignore_eos`, which vLLM, SGLang, llama.cpp and flexjax know; OpenAI refuses it.
    timeout_s: float = 600.0  # Of one request.

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise Refusal(f"A target's url begins with http:// or https://; got {self.url!r}.")
        if self.prompt == "text" and not self.tokenizer:
            raise Refusal("To send prompts as text a tokenizer is needed: set tokenizer to the model's directory.")
        if self.timeout_s <= 0:
            raise Refusal(f"timeout_s must be positive; got {self.timeout_s}.")


class HttpTarget:
    """A URL. One thread with an event loop holds all connections; `submit` only hands it the request."""

    def __init__(self, config: HttpConfig, name: str = "", api_key: str | None = None):
        self.name = name or config.url
        self.config = config
        self._api_key = api_key
        self._tokenizer = _load_tokenizer(config.tokenizer) if config.tokenizer else None
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
        asyncio.run_coroutine_threadsafe(self._connect(), self._loop).result()
        return StartUp(load_s=time.perf_counter() - began, compile_s=0.0)

    def submit(self, request: Request) -> None:
        self._loop.call_soon_threadsafe(self._begin, request)

    def stop(self) -> None:
        if self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
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
        }

    def stats(self) -> TargetStats:
        """Empty: what happens inside is not seen from here."""
        return TargetStats()

    async def _connect(self) -> None:
        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        self._client = httpx.AsyncClient(
            base_url=self.config.url.rstrip("/").removesuffix("/v1"),
            headers=headers,
            timeout=httpx.Timeout(self.config.timeout_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
        try:
            response = await self._client.get("/v1/models")
            response.raise_for_status()
            served = [str(model["id"]) for model in response.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            await self._client.aclose()
            raise Refusal(
                f"No OpenAI-compatible server answers at {self.config.url}: GET /v1/models gave {error!r}. "
                "Start the server first, or correct the url (without /v1)."
            ) from error
        self._server = response.headers.get("server", "")
        if not self._model:
            if not served:
                raise Refusal(f"{self.config.url} serves no model: /v1/models is empty.")
            self._model = served[0]

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    def _begin(self, request: Request) -> None:
        task = self._loop.create_task(self._serve(request))
        self._tasks.add(task)  # The loop itself keeps weak references only.
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: Request) -> None:
        stream = _Stream(request)
        error = ""
        try:
            await asyncio.wait_for(self._read(request, stream), self.config.timeout_s)
            self._counted_by[stream.settle(self._tokenizer)] += 1
        except TimeoutError:
            error = f"not done within timeout_s={self.config.timeout_s:g} s"
        except asyncio.CancelledError:
            error = "the target was stopped"
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        stream.end(error)

    async def _read(self, request: Request, stream: "_Stream") -> None:
        async with self._client.stream("POST", "/v1/completions", json=self._body(request)) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                raise Refusal(f"HTTP {response.status_code} from {self.config.url}: {text[:500]}")
            async for line in response.aiter_lines():
                now = time.perf_counter()
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                stream.take(json.loads(data), now)

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


class _Stream:
    """One answer as it comes in: turns chunks into events."""

    def __init__(self, request: Request):
        self._request = request
        self._text = ""
        self._count = 0
        self._exact = True  # Every chunk so far said how many tokens it holds.
        self._usage: int | None = None
        self._last = 0.0
        self._reason: FinishReason = "length"

    def take(self, chunk: dict[str, Any], now: float) -> None:
        if "error" in chunk:
            raise Refusal(f"the server reported {chunk['error']}")
        if chunk.get("usage"):
            self._usage = int(chunk["usage"]["completion_tokens"])
        for choice in chunk.get("choices", ()):
            text = choice.get("text") or ""
            self._text += text
            self._reason = choice.get("finish_reason") or self._reason
            told = choice.get("token_ids") or (choice.get("logprobs") or {}).get("tokens")
            if told is None:
                self._exact = self._exact and not text
                told = [UNKNOWN_TOKEN] if text else []
            self._hand_over([t if isinstance(t, int) else UNKNOWN_TOKEN for t in told], text, now)

    def settle(self, tokenizer: Tokenizer | None) -> str:
        """Puts the count right, at the last chunk's time; returns what it was taken from."""
        if self._usage is not None:
            total, how = self._usage, "usage"
        elif self._exact and self._count:
            total, how = self._count, "token_ids or logprobs"
        elif tokenizer is not None:
            total, how = len(tokenizer.encode(self._text, add_special_tokens=False).ids), "re-tokenised text"
        else:
            raise Refusal(
                "the server tells neither usage nor tokens; set tokenizer to the model's directory to count them"
            )
        if total < self._count and how == "usage":
            raise Refusal(f"usage says {total} tokens, {self._count} chunks held some")
        self._hand_over([UNKNOWN_TOKEN] * (total - self._count), "", self._last)
        return how

    def end(self, error: str) -> None:
        reason: FinishReason = "error" if error else self._reason
        self._tell(TokenEvent("done", self._request.id, time.perf_counter(), finish_reason=reason, error=error))

    def _hand_over(self, token_ids: list[int], text: str, now: float) -> None:
        if not token_ids:
            return
        self._count += len(token_ids)
        self._last = now
        self._tell(TokenEvent("token", self._request.id, now, token_ids=tuple(token_ids), text=text))

    def _tell(self, event: TokenEvent) -> None:
        if self._request.listener is not None:
            self._request.listener(event)


def _load_tokenizer(path: str) -> Tokenizer:
    there = shipped.model(path)
    file = there / "tokenizer.json" if there.is_dir() else there
    if not file.is_file():
        raise Refusal(f"A tokenizer is a tokenizer.json or a directory that holds one; {file} does not exist.")
    return Tokenizer.from_file(str(file))
