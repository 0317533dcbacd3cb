"""The Python face: a model directory in, text out."""

import asyncio
import dataclasses
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from flexjax.engine.chat import Message, conversations
from flexjax.engine.config import EngineConfig
from flexjax.engine.processes.replicas import load_engine
from flexjax.engine.protocol import ServesModel
from flexjax.engine.request import CompletionOutput, QueueFull, Request, RequestOutput, SamplingParams, TokenEvent
from flexjax.hardware import compile_cache, platforms
from flexjax.hardware.mesh import MeshConfig
from flexjax.refusal import Refusal


@dataclasses.dataclass(frozen=True)
class ChatPrompt:
    """A conversation as its chat template writes it out, and its tokens; see `LLM.chat`."""

    text: str
    token_ids: tuple[int, ...]


# Text, token ids, or either of them as vLLM spells it: {"prompt": text}, {"prompt_token_ids": ids}.
Prompt = str | Sequence[int] | Mapping[str, Any] | ChatPrompt
PlainPrompt = str | tuple[int, ...] | ChatPrompt

_numbers = itertools.count()  # Request numbers: several faces of one engine must not take the same ids.


class LLM:
    """One model, loaded and compiled.

    >>> llm = LLM.load("models/weights/pydoc-7m")
    >>> llm.generate(["def mean(values):"], SamplingParams(temperature=0, max_tokens=32))[0].outputs[0].text
    """

    def __init__(self, engine: ServesModel):
        self.engine = engine
        self._meeting = engine.meeting

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
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """One `RequestOutput` a prompt, in order, with `params` and `priority` for all or one for each; lower
        priorities go first, and None is 0.

        Every prompt is checked before the first is run: Refusal names the one that cannot be served. A fault of one
        request ends it alone, with finish_reason "error" and the reason in `error`; RuntimeError, from its cause, when
        the engine fails. Whatever is raised, nothing of this call goes on. More prompts than the engine's queue holds
        are submitted as it drains. Over a mesh of several processes, each that makes the same call gets the same
        outputs.
        """
        batch = _as_batch(prompts)
        each = _for_each("SamplingParams", params or SamplingParams(), len(batch))
        priorities = _for_each("priority", priority, len(batch))
        requests = [self._request(*one) for one in zip(batch, each, priorities, strict=True)]
        stated = lambda: [(request.prompt_token_ids, request.params, request.priority) for request in requests]
        return self._together(lambda: f"generate {stated()}", lambda: self._generate(batch, requests))

    def _generate(self, batch: Sequence[PlainPrompt], requests: Sequence[Request]) -> list[RequestOutput]:
        ended: SimpleQueue[None] = SimpleQueue()
        collectors = []
        for i, (prompt, request) in enumerate(zip(batch, requests, strict=True)):
            collector = _Collector(prompt, request, ended)
            try:
                self.engine.check(collector.request)
            except Refusal as error:
                raise Refusal(f"Prompt {i}: {error}") from error
            collectors.append(collector)
        self.engine.start()
        submitted: list[_Collector] = []
        open_ = 0
        try:
            for collector in collectors:
                open_ = self._submit(collector.request, open_, ended)
                submitted.append(collector)
            for collector in collectors:
                collector.wait()
                self._check_end(collector.fatal)
            return [collector.output() for collector in collectors]
        except BaseException:  # Interrupted, refused or failed: nothing of this call goes on behind the caller's back.
            for collector in submitted:
                self.engine.cancel(collector.request.id)
            raise

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> list[RequestOutput]:
        """Answers a conversation, or several: one `RequestOutput` each, whose `prompt` is what the template wrote.

        A message is a dict with `role` and `content`. The template alone says which special tokens stand in the
        prompt: the tokenizer adds no BOS to it. `variables` and `chat_template_kwargs` (`tools`, `documents`,
        `enable_thinking`, …) are the template's own. See `ChatTemplates.render` for the rest and the refusals.
        """
        options: dict[str, Any] = dict(
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template=chat_template,
        )
        batch = conversations(messages)
        return self.generate(
            [self._chat_prompt(one, {**(chat_template_kwargs or {}), **variables, **options}) for one in batch],
            params,
            priority=priority,
        )

    def _chat_prompt(self, messages: Sequence[Message], options: Mapping[str, Any]) -> ChatPrompt:
        vocabulary = self.engine.vocabulary
        if vocabulary is None or vocabulary.chat is None:
            raise Refusal("This model directory has no tokenizer.json, which a chat needs; give prompts as token ids.")
        text = vocabulary.chat.render(messages, **options)
        return ChatPrompt(text, vocabulary.encode(text, add_special_tokens=False))

    def _submit(self, request: Request, open_: int, ended: "SimpleQueue[None]") -> int:
        """As `Engine.submit`, but waits for room while any of the call's `open_` requests may make some. Returns how
        many of them are left, with this one."""
        while True:
            try:
                self.engine.submit(request)
                return open_ + 1
            except QueueFull:
                if not open_:
                    raise
                ended.get()
                open_ -= 1

    def _check_end(self, event: TokenEvent | None) -> None:
        """RuntimeError for the end of a request that came because the engine failed."""
        if event is not None and event.fatal:
            raise RuntimeError(event.error) from self.engine.failure

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, priority: int | None = None
    ) -> AsyncIterator[TokenEvent]:
        """The events of one prompt as they happen; leaving the loop early cancels the request. RuntimeError, from its
        cause, when the engine fails."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[TokenEvent]()
        params = params or SamplingParams()
        listener = lambda event: loop.call_soon_threadsafe(queue.put_nowait, event)
        request = self._request(_plain("The prompt", prompt), params, priority, listener)
        self.engine.start()
        self.engine.submit(request)
        open_ends = params.n
        try:
            while open_ends:
                event = await queue.get()
                open_ends -= event.kind == "done"
                self._check_end(event)
                yield event
        finally:
            if open_ends:
                self.engine.cancel(request.id)

    def score(self, prompts: Prompt | Sequence[Prompt], *, rows_per_step: int = 256) -> list[np.ndarray]:
        """Float32 logits [T, V] of every position; row t predicts token t + 1.

        `rows_per_step=1` feeds token by token, as decoding does.
        """
        engine = self.engine
        if rows_per_step < 1:
            raise Refusal(f"rows_per_step must be at least 1; got {rows_per_step}.")
        batch = [self._tokens(p) for p in _as_batch(prompts)]
        for i, tokens in enumerate(batch):
            if not 0 < len(tokens) <= engine.max_model_len:
                raise Refusal(
                    f"Prompt {i} must have 1 to {engine.max_model_len} tokens (max_model_len); it has {len(tokens)}."
                )
            engine.check_tokens(tokens)
        return self._together(
            lambda: f"score {batch} by {rows_per_step}",
            lambda: [engine.score(tokens, rows_per_step) for tokens in batch],
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

    def _together[T](self, stated: Callable[[], str], work: Callable[[], T]) -> T:
        return work() if self._meeting is None else self._meeting.call(stated(), work)

    def _tokens(self, prompt: PlainPrompt) -> tuple[int, ...]:
        if isinstance(prompt, ChatPrompt):
            return prompt.token_ids
        if not isinstance(prompt, str):
            return prompt
        if self.engine.vocabulary is None:
            raise Refusal("This model directory has no tokenizer.json; give prompts as token ids.")
        return self.engine.vocabulary.encode(prompt)

    def _request(self, prompt: PlainPrompt, params: SamplingParams, priority: int | None, listener=None) -> Request:
        return Request(f"llm-{next(_numbers)}", self._tokens(prompt), params, priority or 0, listener)


def _as_batch(prompts: Any) -> list[PlainPrompt]:
    """The prompts in their plain form; a lone one is a batch of one."""
    values = _listed(prompts)
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):  # Also a dict, and a ChatPrompt.
        return [_plain("Prompt 0", prompts)]
    if values and isinstance(values[0], int | np.integer):
        return [_plain("Prompt 0", values)]
    return [_plain(f"Prompt {i}", one) for i, one in enumerate(values)]


def _plain(which: str, prompt: Any) -> PlainPrompt:
    """Refusal for what is no prompt."""
    given = prompt
    if isinstance(prompt, Mapping):
        ids = prompt.get("prompt_token_ids")
        given = prompt.get("prompt") if ids is None else ids
    if isinstance(given, str | ChatPrompt):
        return given
    values = _listed(given)
    whole = isinstance(values, Sequence) and all(isinstance(token, int | np.integer) for token in values)
    if not whole or isinstance(values, bytes):
        raise Refusal(
            f'{which} must be text, a list of token ids, {{"prompt": text}} or {{"prompt_token_ids": ids}}; it is '
            f"{str(prompt)[:80]!r}, of the type {type(prompt).__name__}."
        )
    return tuple(int(token) for token in values)


def _listed(value: Any) -> Any:
    """An array as lists and numbers of Python, anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _for_each[T](name: str, values: T | Sequence[T], count: int) -> list[T]:
    each = list(values) if isinstance(values, Sequence | np.ndarray) else [values] * count
    if len(each) != count:
        raise Refusal(f"Give one {name} for all prompts or one for each; got {len(each)} for {count}.")
    return each


class _Collector:
    """Gathers the events of one request into its output."""

    def __init__(self, prompt: PlainPrompt, request: Request, ended: "SimpleQueue[None]"):
        self.prompt = prompt.text if isinstance(prompt, ChatPrompt) else prompt if isinstance(prompt, str) else None
        self.request = dataclasses.replace(request, listener=self._listen)
        n = request.params.n
        self._text: list[list[str]] = [[] for _ in range(n)]
        self._tokens: list[list[int]] = [[] for _ in range(n)]
        self._logprobs: list[list[dict[int, float]]] = [[] for _ in range(n)]
        self._ends: dict[int, TokenEvent] = {}
        self._all_ended, self._ended = threading.Event(), ended  # The latter is told too.
        self.fatal: TokenEvent | None = None  # The end that came because the engine failed.

    def _listen(self, event: TokenEvent) -> None:
        if event.kind == "token":
            self._text[event.index].append(event.text)
            self._tokens[event.index].extend(event.token_ids)
            self._logprobs[event.index].extend(event.logprobs)
        elif event.kind == "done":
            self._ends[event.index] = event
            self.fatal = event if event.fatal else self.fatal
            if len(self._ends) == self.request.params.n:
                self._all_ended.set()
                self._ended.put(None)

    def wait(self) -> None:
        self._all_ended.wait()

    def output(self) -> RequestOutput:
        wants = self.request.params.logprobs is not None
        outputs = [
            CompletionOutput(
                i,
                "".join(self._text[i]),
                tuple(self._tokens[i]),
                self._ends[i].finish_reason,
                tuple(self._logprobs[i]) if wants else None,
                self._ends[i].error,
                limit=self._ends[i].limit,
                seed=self._ends[i].seed,
            )
            for i in range(self.request.params.n)
        ]
        return RequestOutput(self.request.id, self.prompt, self.request.prompt_token_ids, outputs)
