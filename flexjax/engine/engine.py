"""The engine: prompts in, token events out.

One thread owns everything below `submit` and `cancel`. It keeps up to `pipeline_depth` dispatches in
flight, so that it schedules the next step and hands over the last one's tokens while the device works.
"""

import collections
import dataclasses
import functools
import gc
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flexjax import causal_lm, shipped
from flexjax.causal_lm import CausalLM
from flexjax.engine.config import EngineConfig
from flexjax.engine.pages import PagePool
from flexjax.engine.placement import Placement
from flexjax.engine.request import FinishReason, Request, TokenEvent
from flexjax.engine.runner import StepRunner
from flexjax.engine.sampling import MAX_STOP_IDS, Sampled
from flexjax.engine.scheduler import Chunk, Plan, Scheduler
from flexjax.engine.score import Scorer
from flexjax.engine.sequence import Sequence, Status
from flexjax.engine.stats import EngineStats, StepSample
from flexjax.engine.step import packed, suited
from flexjax.engine.text import TextStream
from flexjax.engine.tokenizer import Vocabulary, load_vocabulary
from flexjax.hardware import memory
from flexjax.hardware.mesh import make_mesh
from flexjax.hardware.sharding import SERVING, place
from flexjax.kernels.ragged_paged_attention import LARGEST
from flexjax.quantize import cache_scale, quantize_weights, rounded
from flexjax.refusal import Refusal, Unsupported


@dataclasses.dataclass(frozen=True)
class Scoring:
    """A text to score between two steps; `result` is where its logits are awaited."""

    tokens: tuple[int, ...]
    rows_per_step: int
    result: Future[np.ndarray] | None


class Engine:
    """Continuous batching of one model, on its device or split over a mesh.

    `submit` refuses a bad request with a Refusal and touches nothing else; from then on everything
    about a request reaches its listener as `TokenEvent`s, on the engine's thread. A listener that
    raises ends its own request alone.
    """

    def __init__(
        self,
        model: CausalLM,
        vocabulary: Vocabulary | None,
        config: EngineConfig,
        mesh: Mesh | None = None,
        *,
        release: bool = False,
    ):
        """Takes the model over: its weights may be quantised or laid out anew, and the old arrays given up.

        `mesh` is by default that of `config.mesh`; its `data` axis must be 1 (`flexjax.engine.replicas`). `release`
        frees arrays as they are packed on a CPU, where the model is else left as it was.
        """
        started = time.perf_counter()
        self.placement = _placement(config, mesh)
        if config.weight_dtype is not None:
            model = quantize_weights(model, config.weight_dtype)
        cache_dtype = config.cache_dtype or config.dtype
        kv_scale = cache_scale(model, cache_dtype) if cache_dtype in LARGEST else None
        model = suited(model, jax.default_backend(), release=True)
        model = packed(model, config, self.placement.mesh, release=release)
        self.config = config
        self.model_config = model.config
        self.vocabulary = vocabulary
        self.max_model_len = _context_limit(config, model)
        self.pool = PagePool(_num_pages(config, model, self.max_model_len, self.placement), config.page_size)
        self.scheduler = Scheduler(
            self.pool,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            decode_steps=config.decode_steps,
        )
        self.runner = StepRunner(
            model,
            config,
            num_pages=self.pool.capacity + 1,
            pages_per_seq=self.pool.pages_for(self.max_model_len),
            mesh=self.placement.mesh,
            kv_scale=kv_scale,
        )
        self.runner.compile()
        gc.collect()  # Tracing leaves circles.
        memory.trim()
        memory.forget_code()
        self.stats = EngineStats(self.pool.capacity, config.max_num_seqs, compile_seconds=self.runner.compile_seconds)
        self.stats.load_seconds = time.perf_counter() - started - self.runner.compile_seconds
        self._in_flight: collections.deque[tuple[Plan, Sampled]] = collections.deque()
        self._live: dict[str, list[Sequence]] = {}
        self._arrivals = 0
        self._wake = threading.Condition()
        # New ones, those to cancel, and texts to score, in order.
        self._inbox: list[Sequence | tuple[Sequence, ...] | Scoring] = []
        # Where other processes take the same turns (`flexjax.engine.lockstep`): told at each what is taken in,
        self.followers: Callable[[list[Any]], None] | None = None
        self.group: tuple[Engine, ...] = (self,)  # and the engines whose turns one thread takes, in this order.
        self._scorers: dict[int, Scorer] = {}
        self._starting = threading.Lock()  # Held by start and stop: one thread at a time.
        self._closed = False  # Between the end of the thread and the next start.
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._failure: BaseException | None = None

    @classmethod
    def load(cls, directory: str | Path, config: EngineConfig | None = None, mesh: Mesh | None = None) -> "Engine":
        """The engine of a Hugging Face model directory, as `shipped.model` finds it."""
        config, directory = config or EngineConfig(), shipped.model(directory)
        mesh = _placement(config, mesh).mesh
        started = time.perf_counter()
        family, hf = causal_lm.family_of_directory(directory)
        vocabulary = load_vocabulary(directory, vocab_size=family.config_from_hf(hf).vocab_size)
        options: dict[str, Any] = {} if mesh is None else {"place": place(mesh, SERVING)}
        if config.weight_dtype is not None:
            options["convert"] = functools.partial(rounded, name=config.weight_dtype)
        model = family.load(directory, dtype=jnp.dtype(config.dtype), **options)
        loaded = time.perf_counter() - started
        engine = cls(model, vocabulary, config, mesh, release=True)
        engine.stats.load_seconds += loaded
        return engine

    def start(self) -> None:
        """Starts the thread that runs the steps; does nothing when it runs already."""
        if self.placement.spans_processes and self.followers is None:
            raise Unsupported(
                "An engine over several processes takes the same turns in each, which its thread alone would not: load "
                "it with LLM.load or flexjax.engine.load_engine, in every process."
            )
        if self is not self.group[0]:
            return self.group[0].start()
        with self._starting:
            if self._thread is None:
                self._stopping = False
                for engine in self.group:
                    engine._closed = False
                self._thread = threading.Thread(target=self._loop, name="flexjax-engine", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Ends the thread; requests still open get "done" with reason "cancelled"."""
        if self is not self.group[0]:
            return self.group[0].stop()
        with self._starting:
            if self._thread is not None:
                with self._wake:
                    self._stopping = True
                    self._wake.notify()
                self._thread.join()
                self._thread = None

    def submit(self, request: Request) -> None:
        """Queues a request; Refusal, before anything else happens, when it can never be served."""
        self.check(request)
        params = request.params
        prompt = request.prompt_token_ids
        eos = self.vocabulary.eos_ids if self.vocabulary and not params.ignore_eos else frozenset()
        seed = params.seed if params.seed is not None else secrets.randbits(32)
        with self._wake:
            if self._failure is not None:
                raise RuntimeError("The engine has failed and takes no requests.") from self._failure
            if self._closed:
                raise RuntimeError("The engine was stopped; start() lets it take requests again.")
            if request.id in self._live:
                raise Refusal(f"Request ids must be unique among those in flight; {request.id!r} is taken.")
            sequences = [
                Sequence(
                    request=request,
                    index=index,
                    arrival=self._arrivals,
                    seed=(seed + index) % 2**32,
                    limit=min(params.max_tokens, self.max_model_len - len(prompt)),
                    stop_ids=eos | frozenset(params.stop_token_ids),
                    stream=TextStream(self.vocabulary.tokenizer if self.vocabulary else None, params.stop, prompt),
                    tokens=list(prompt),
                )
                for index in range(params.n)
            ]
            self._arrivals += 1
            self._live[request.id] = sequences
            self._inbox.extend(sequences)
            self._wake.notify()

    def check(self, request: Request) -> None:
        """Refusal, with the rule, the values and the way out, for a request that cannot be served."""
        prompt, params = request.prompt_token_ids, request.params
        if not prompt:
            raise Refusal("A prompt needs at least one token; this one is empty. Begin with a BOS token or some text.")
        self.check_tokens((*prompt, *params.stop_token_ids))
        if len(prompt) >= self.max_model_len:
            raise Refusal(
                f"A prompt must leave room for one token in the context of {self.max_model_len}; this one has "
                f"{len(prompt)}. Shorten it, or load the model with a larger max_model_len (the model itself goes up "
                f"to {self.model_config.max_position})."
            )
        longest = min(len(prompt) + params.max_tokens, self.max_model_len)
        needed = self.pool.pages_for(longest)
        if needed > self.pool.capacity:
            raise Refusal(
                f"A request must fit the page pool alone: {longest} tokens need {needed} pages of "
                f"{self.pool.page_size}, the pool has {self.pool.capacity}. Lower max_tokens, or give the engine more "
                "pages (num_pages, cache_gib)."
            )
        if params.stop and self.vocabulary is None:
            raise Refusal("Stop strings need a tokenizer, and this model directory has none; use stop_token_ids.")
        stops = frozenset(params.stop_token_ids) | (self.vocabulary.eos_ids if self.vocabulary else frozenset())
        if params.min_tokens and len(stops) > MAX_STOP_IDS:
            raise Refusal(f"min_tokens can hold back at most {MAX_STOP_IDS} stop ids; this request has {len(stops)}.")

    def check_tokens(self, token_ids: Iterable[int]) -> None:
        """Refusal for ids that the model has no embedding for."""
        vocab_size = self.runner.vocab_size
        strangers = [t for t in token_ids if not 0 <= t < vocab_size]
        if strangers:
            raise Refusal(
                f"Token ids must lie in [0, {vocab_size}); the request has {strangers[:5]}. Tokenise it with the "
                "model's own tokenizer."
            )

    def cancel(self, request_id: str) -> None:
        """Ends a request: "done" with reason "cancelled". An unknown id is ignored: it may just have ended."""
        with self._wake:
            # Those that bear the id now: it may be taken again before the engine's thread looks.
            self._inbox.append(tuple(self._live.get(request_id, ())))
            self._wake.notify()

    def score(self, tokens: Iterable[int], rows_per_step: int) -> np.ndarray:
        """Float32 logits [T, V] of a text; over several processes between two steps, by the engine's thread."""
        if self.followers is None:
            return self._scorer(rows_per_step)(tuple(tokens))
        self.start()
        result: Future[np.ndarray] = Future()
        self.enqueue(Scoring(tuple(tokens), rows_per_step, result))
        return result.result()

    def enqueue(self, scoring: Scoring) -> None:
        with self._wake:
            if self._closed:
                raise RuntimeError("The engine was stopped.") from self._failure
            self._inbox.append(scoring)
            self._wake.notify()

    def _scorer(self, rows_per_step: int) -> Scorer:
        """With a small cache of its own; compiled at its first text."""
        if rows_per_step not in self._scorers:
            self._scorers[rows_per_step] = Scorer(
                self.runner.model(),
                max_model_len=self.max_model_len,
                page_size=self.config.page_size,
                cache_dtype=self.runner.cache_dtype,
                rows_per_step=rows_per_step,
                placement=self.placement,
                kv_scale=self.runner.program.kv_scale,
            )
        return self._scorers[rows_per_step]

    def turn_with(self, others: Iterable["Engine"]) -> None:
        """From now on one thread takes the turns of all; before `start`."""
        self.group = (self, *others)
        for engine in self.group:
            engine.group, engine._wake = self.group, self._wake

    @property
    def runners(self) -> tuple[StepRunner, ...]:
        """One: this engine's."""
        return (self.runner,)

    def holds(self, request_id: str) -> bool:
        """Whether a request of that id is open."""
        return request_id in self._live

    @property
    def failed(self) -> bool:
        """Whether the device failed, so that no request can be taken any more."""
        return self._failure is not None

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def step(self) -> bool:
        """One turn of the loop, for callers without a thread; False when there is nothing to do."""
        began, waited = time.perf_counter(), self.stats.wait_seconds
        self._take_inbox()
        plan = self.scheduler.schedule()
        if plan is not None:
            self._dispatch(plan)
        if self._in_flight and (plan is None or len(self._in_flight) >= self.config.pipeline_depth):
            self._receive(*self._in_flight.popleft())
        self.stats.host_seconds += time.perf_counter() - began - (self.stats.wait_seconds - waited)
        return plan is not None or bool(self._in_flight) or bool(self._inbox)

    def _loop(self) -> None:
        try:
            while not self._stopping:
                busy = [engine.step() for engine in self.group]
                if not any(busy):
                    with self._wake:
                        self._wake.wait_for(lambda: self._stopping or any(engine._inbox for engine in self.group))
            for engine in self.group:
                engine._end_all("cancelled", "The engine was stopped.")
        except Exception as error:  # The device's: told to every open request and to whoever submits the next.
            logging.exception("The engine failed.")
            for engine in self.group:
                engine._end_all("error", f"The engine failed: {error}", failure=error)

    def _take_inbox(self) -> None:
        with self._wake:
            inbox, self._inbox = self._inbox, []
        if self.followers is not None:
            self.followers(inbox)
        for item in inbox:
            if isinstance(item, Sequence):
                self.scheduler.add(item)
            elif isinstance(item, Scoring):
                self._answer(item)
            else:
                for sequence in item:
                    self._finish(sequence, "cancelled")

    def _answer(self, scoring: Scoring) -> None:
        result = scoring.result or Future()
        try:
            result.set_result(self._scorer(scoring.rows_per_step)(scoring.tokens))
        except Exception as error:
            result.set_exception(error)
            raise

    def _dispatch(self, plan: Plan) -> None:
        sampled = self.runner.run(plan)
        self.scheduler.retire(plan)
        self._in_flight.append((plan, sampled))
        now = time.perf_counter()
        rows = plan.num_rows
        self.stats.samples.append(
            StepSample(
                now,
                len(plan.chunks),
                len(self.scheduler.waiting),
                self.pool.num_used,
                rows,
                plan.num_steps,
                rows - plan.num_decodes,
            )
        )
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if not sequence.announced:
                sequence.announced = True
                self._tell(sequence, TokenEvent("scheduled", sequence.request.id, now, sequence.index))

    def _receive(self, plan: Plan, sampled: Sampled) -> None:
        began = time.perf_counter()
        tokens = np.asarray(sampled.tokens)
        self.stats.wait_seconds += time.perf_counter() - began
        logprobs = None
        for i, chunk in enumerate(plan.chunks):
            sequence = chunk.sequence
            sequence.in_flight -= 1
            if chunk.samples == 0 or sequence.status is Status.FINISHED:
                continue
            new = tokens[: chunk.samples, i].tolist()
            found = None
            if sequence.request.params.logprobs is not None:
                logprobs = logprobs or (np.asarray(sampled.logprob_ids), np.asarray(sampled.logprobs))
                found = _logprobs(logprobs, i, chunk, sequence.request.params.logprobs)
            self._hand_over(sequence, new, found)

    def _hand_over(self, sequence: Sequence, new: list[int], logprobs: list[dict[int, float]] | None) -> None:
        """Appends tokens up to the first that ends the sequence, and tells the listener."""
        params = sequence.request.params
        text, reason, count = "", None, 0
        for token in new:
            sequence.tokens.append(token)
            count += 1
            num_outputs = len(sequence.tokens) - sequence.num_prompt
            if token in sequence.stop_ids and num_outputs > params.min_tokens:
                reason = "stop"
                break
            text += sequence.stream.push(token, may_stop=num_outputs > params.min_tokens)
            if sequence.stream.stopped:
                reason = "stop"
                break
            if num_outputs >= sequence.limit:
                reason = "length"
                break
        if reason is not None:
            text += sequence.stream.flush()
        self.stats.output_tokens += count
        event = TokenEvent(
            "token",
            sequence.request.id,
            time.perf_counter(),
            sequence.index,
            tuple(new[:count]),
            text,
            tuple(logprobs[:count]) if logprobs else (),
        )
        self._tell(sequence, event)
        if reason is not None:
            self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason, error: str = "") -> None:
        if sequence.status is Status.FINISHED:  # By its listener, or by a sibling's.
            return
        self.scheduler.finish(sequence)
        siblings = self._live[sequence.request.id]
        siblings.remove(sequence)
        if not siblings:
            with self._wake:
                del self._live[sequence.request.id]
        self.stats.preemptions += sequence.num_preempted
        now = time.perf_counter()
        event = TokenEvent("done", sequence.request.id, now, sequence.index, finish_reason=reason, error=error)
        self._tell(sequence, event)

    def _tell(self, sequence: Sequence, event: TokenEvent) -> None:
        """Calls the listener. One that raises loses its own request and nobody else's."""
        if sequence.listener is None:
            return
        try:
            sequence.listener(event)
        except Exception:
            request_id = sequence.request.id
            logging.exception("The listener of request %r raised; the request is cancelled.", request_id)
            for sibling in (sequence, *self._live.get(request_id, ())):
                sibling.listener = None
            self.cancel(request_id)  # In the next turn, as for anybody: other processes may take it too.

    def _end_all(self, reason: FinishReason, error: str, failure: Exception | None = None) -> None:
        with self._wake:  # From here on `submit` refuses, so that nobody slips in behind.
            self._closed, self._failure = True, failure
            unread, self._inbox = self._inbox, []
            everyone = [sequence for sequences in self._live.values() for sequence in sequences]
        for sequence in everyone:
            self._finish(sequence, reason, error)
        for item in unread:
            if isinstance(item, Scoring) and item.result is not None:
                item.result.set_exception(RuntimeError(error))
        self._in_flight.clear()


def _logprobs(arrays: tuple[np.ndarray, np.ndarray], i: int, chunk: Chunk, count: int) -> list[dict[int, float]]:
    """The chosen token first, then the `count` most likely ones."""
    ids, values = (a[: chunk.samples, i, : 1 + count].tolist() for a in arrays)
    return [dict(zip(ids_, values_, strict=True)) for ids_, values_ in zip(ids, values, strict=True)]


def _placement(config: EngineConfig, mesh: Mesh | None) -> Placement:
    return Placement(make_mesh(config.mesh) if mesh is None and config.mesh is not None else mesh)


def _context_limit(config: EngineConfig, model: CausalLM) -> int:
    limit = model.config.max_position
    if config.max_model_len is not None and config.max_model_len > limit:
        raise Refusal(f"max_model_len must be within the model's own context of {limit}; got {config.max_model_len}.")
    return config.max_model_len or limit


def _num_pages(config: EngineConfig, model: CausalLM, max_model_len: int, placement: Placement) -> int:
    """As asked for; else one full-length context for every sequence, as far as each device's cache_gib goes."""
    if config.num_pages is not None:
        return config.num_pages
    wanted = config.max_num_seqs * -(-max_model_len // config.page_size) + 1
    dtype = jnp.dtype(config.cache_dtype or config.dtype)
    one, two = (placement.device_bytes(placement.cache_spec(model, n, config.page_size, 1, dtype)) for n in (1, 2))
    page_bytes = max(two - one, 1)
    affordable = int(config.cache_gib * 2**30) // page_bytes
    if affordable < 2:
        raise Refusal(f"One page takes {page_bytes} bytes a device; cache_gib={config.cache_gib} has no room for it.")
    return min(wanted, affordable)
