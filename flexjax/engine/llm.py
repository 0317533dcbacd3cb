"""The Python face: a model directory in, text out."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flexjax.engine.config import EngineConfig
from flexjax.engine.engine import Engine
from flexjax.engine.replicas import Replicas, load_engine
from flexjax.engine.request import CompletionOutput, Request, RequestOutput, SamplingParams, TokenEvent
from flexjax.hardware import compile_cache, platforms
from flexjax.hardware.mesh import MeshConfig
from flexjax.refusal import Refusal

Prompt = str | Sequence[int]


class LLM:
    """One model, loaded and compiled.

    >>> llm = LLM.load("models/weights/pydoc-7m")
    >>> llm.generate(["def mean(values):"], SamplingParams(temperature=0, max_tokens=32))[0].outputs[0].text
    """

    def __init__(self, engine: Engine | Replicas):
        self.engine = engine
        self._ids = itertools.count()
        self._meeting = engine.meeting if isinstance(engine, Replicas) else None

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str = "bfloat16",
        max_model_len: int | None = None,
        mesh: MeshConfig | None = None,
        devices: Sequence[Any] | None = None,
        **sizes: Any,
    ) -> "LLM":
        """Loads a Hugging Face directory; `sizes` are further fields of `EngineConfig`.

        `mesh` splits the model over `devices` (all of them by default), with `data` replicas of it. Over devices of
        several processes each of them makes this call; then process 0 generates and streams while the others
        `follow`, or each of them makes the same calls.
        Compiled steps are kept on disk, so that a second start is quick.
        """
        platforms.cpu_unless_accelerated()
        compile_cache.enable()
        return cls(
            load_engine(path, EngineConfig(dtype=dtype, max_model_len=max_model_len, mesh=mesh, **sizes), devices)
        )

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """One `RequestOutput` a prompt, in order, with `params` for all or one for each.

        Every prompt is checked before the first is run: Refusal names the one that cannot be served. Over a
        mesh of several processes, each that makes the same call gets the same outputs.
        """
        batch = _as_batch(prompts)
        each = [params or SamplingParams()] * len(batch) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(batch):
            raise Refusal(f"Give one SamplingParams for all prompts or one for each; got {len(each)} for {len(batch)}.")
        requests = [self._request(prompt, one) for prompt, one in zip(batch, each, strict=True)]
        stated = [(request.prompt_token_ids, request.params) for request in requests]
        return self._together(f"generate {stated}", lambda: self._generate(batch, requests))

    def _generate(self, batch: Sequence[Prompt], requests: Sequence[Request]) -> list[RequestOutput]:
        collectors = []
        for i, (prompt, request) in enumerate(zip(batch, requests, strict=True)):
            collector = _Collector(prompt, request)
            try:
                self.engine.check(collector.request)
            except Refusal as error:
                raise Refusal(f"Prompt {i}: {error}") from error
            collectors.append(collector)
        self.engine.start()
        for collector in collectors:
            self.engine.submit(collector.request)
        try:
            return [collector.wait() for collector in collectors]
        except BaseException:  # Interrupted: nothing of this call goes on behind the caller's back.
            for collector in collectors:
                self.engine.cancel(collector.request.id)
            raise

    async def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncIterator[TokenEvent]:
        """The events of one prompt as they happen; leaving the loop early cancels the request."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[TokenEvent]()
        params = params or SamplingParams()
        listener = lambda event: loop.call_soon_threadsafe(queue.put_nowait, event)
        request = self._request(prompt, params, listener)
        self.engine.start()
        self.engine.submit(request)
        open_ends = params.n
        try:
            while open_ends:
                event = await queue.get()
                open_ends -= event.kind == "done"
                yield event
        finally:
            if open_ends:
                self.engine.cancel(request.id)

    def score(self, prompts: Prompt | Sequence[Prompt], *, rows_per_step: int = 256) -> list[np.ndarray]:
        """Float32 logits [T, V] of every position; row t predicts token t + 1.

        `rows_per_step=1` feeds token by token, as decoding does.
        """
        engine = self.engine
        batch = [self._tokens(p) for p in _as_batch(prompts)]
        for i, tokens in enumerate(batch):
            if not 0 < len(tokens) <= engine.max_model_len:
                raise Refusal(
                    f"Prompt {i} must have 1 to {engine.max_model_len} tokens (max_model_len); it has {len(tokens)}."
                )
            engine.check_tokens(tokens)
        return self._together(
            f"score {batch} by {rows_per_step}", lambda: [engine.score(tokens, rows_per_step) for tokens in batch]
        )

    def follow(self) -> None:
        """In a process other than process 0 of a model over several: lets process 0 generate, score and stream, and
        returns when it closes the model. RuntimeError where a process is lost."""
        if self._meeting is None:
            raise Refusal("A model of one process has none that follows; LLM.load with a mesh over several has.")
        self._meeting.follow()

    def close(self) -> None:
        """Ends what is still running. Over several processes for all of them; others than process 0 wait for it."""
        self.engine.stop()

    def _together[T](self, stated: str, work: Callable[[], T]) -> T:
        return work() if self._meeting is None else self._meeting.call(stated, work)

    def _tokens(self, prompt: Prompt) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return tuple(int(t) for t in prompt)
        if self.engine.vocabulary is None:
            raise Refusal("This model directory has no tokenizer.json; give prompts as token ids.")
        return self.engine.vocabulary.encode(prompt)

    def _request(self, prompt: Prompt, params: SamplingParams, listener=None) -> Request:
        return Request(f"llm-{next(self._ids)}", self._tokens(prompt), params, listener=listener)


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A lone string or list of ids is a batch of one."""
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int | np.integer)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


class _Collector:
    """Gathers the events of one request into its output."""

    def __init__(self, prompt: Prompt, request: Request):
        self.prompt = prompt if isinstance(prompt, str) else None
        self.request = Request(request.id, request.prompt_token_ids, request.params, listener=self._listen)
        n = request.params.n
        self._text: list[list[str]] = [[] for _ in range(n)]
        self._tokens: list[list[int]] = [[] for _ in range(n)]
        self._logprobs: list[list[dict[int, float]]] = [[] for _ in range(n)]
        self._ends: dict[int, TokenEvent] = {}
        self._all_ended = threading.Event()

    def _listen(self, event: TokenEvent) -> None:
        if event.kind == "token":
            self._text[event.index].append(event.text)
            self._tokens[event.index].extend(event.token_ids)
            self._logprobs[event.index].extend(event.logprobs)
        elif event.kind == "done":
            self._ends[event.index] = event
            if len(self._ends) == self.request.params.n:
                self._all_ended.set()

    def wait(self) -> RequestOutput:
        self._all_ended.wait()
        wants = self.request.params.logprobs is not None
        outputs = [
            CompletionOutput(
                i,
                "".join(self._text[i]),
                tuple(self._tokens[i]),
                self._ends[i].finish_reason,
                tuple(self._logprobs[i]) if wants else None,
                self._ends[i].error,
            )
            for i in range(self.request.params.n)
        ]
        return RequestOutput(self.request.id, self.prompt, self.request.prompt_token_ids, outputs)
