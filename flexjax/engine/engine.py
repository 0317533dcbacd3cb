"""The engine: prompts in, token events out.

One thread owns everything below `submit` and `cancel`. It keeps up to `pipeline_depth` dispatches in
flight, so that it schedules the next step and hands over the last one's tokens while the device works.
"""

import collections
import functools
import gc
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

from flexjax import families, shipped
from flexjax.engine.config import EngineConfig
from flexjax.engine.device.calibration import Calibration
from flexjax.engine.device.placement import Placement
from flexjax.engine.device.runner import StepRunner
from flexjax.engine.device.sampling import MAX_STOP_IDS, Sampled
from flexjax.engine.device.score import Scorer, Scorers, Scoring
from flexjax.engine.device.step import packed, suited
from flexjax.engine.limits import check_room, context_limit, most_open, page_pools
from flexjax.engine.loop import Loop
from flexjax.engine.request import FinishReason, Request, TokenEvent
from flexjax.engine.scheduler import Chunk, Plan, Scheduler
from flexjax.engine.sequence import Sequence, Status, output_limit
from flexjax.engine.stats import EngineStats, StepSample
from flexjax.engine.teller import Teller
from flexjax.engine.text import TextStream
from flexjax.engine.tokenizer import Vocabulary, load_vocabulary
from flexjax.hardware import memory
from flexjax.hardware.mesh import make_mesh
from flexjax.hardware.sharding import SERVING, place
from flexjax.model import CausalLM
from flexjax.nn import quantized, weight_dtypes
from flexjax.quantize import FORMATS
from flexjax.refusal import Refusal, Unsupported


class Engine:
    """Continuous batching of one model, on its device or split over a mesh.

    `submit` refuses a bad request with a Refusal and touches nothing else; from then on everything
    about a request reaches its listener as `TokenEvent`s, on the engine's thread. A listener that
    raises, or tokens that cannot be made text, end their own request alone; whatever ends a turn early
    ends all of them with an error, and the engine takes no more.
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
        """Takes the model over, whose weights are in `config.weight_dtype` already (`flexjax.nn.quantize_weights`);
        they may be laid out anew, and the old arrays given up.

        `mesh` is by default that of `config.mesh`; its `data` axis must be 1 (`flexjax.engine.processes`). `release`
        frees arrays as they are packed on a CPU, where the model is else left as it was.
        """
        started = time.perf_counter()
        self.placement = _placement(config, mesh)
        _check_weights(model, config)
        model = suited(model, jax.default_backend(), release=True)
        model = packed(model, config, self.placement.mesh, release=release)
        self.config = config
        self.meeting = None  # Of several processes, whose face is `Replicas`.
        self.model_config = model.config
        self.vocabulary = vocabulary
        self.max_model_len = context_limit(config, model)
        self.pool = page_pools(config, model, self.max_model_len, self.placement)
        self.scheduler = Scheduler(
            self.pool,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            decode_steps=config.decode_steps,
        )
        self.runner = StepRunner(
            model,
            config,
            num_pages=[pool.capacity + 1 for pool in self.pool.pools],
            pages_per_seq=-(-self.max_model_len // config.page_size),
            mesh=self.placement.mesh,
            calibration=lambda: Calibration.of(vocabulary, model.config),
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
        self._num_sequences = 0  # That have not ended, of all requests.
        # New ones, those to cancel, and texts to score, in order; and of these what the running turn has taken.
        self._inbox: list[Sequence | tuple[Sequence, ...] | Scoring] = []
        self._taken: collections.deque[Sequence | tuple[Sequence, ...] | Scoring] = collections.deque()
        # Where other processes take the same turns (`flexjax.engine.processes`): told at each what is taken in.
        self.followers: Callable[[list[Any]], None] | None = None
        self.led = False  # By another process, which says what ends early;
        self._faulty: list[Sequence] = []  # and must say so of these in the next turn.
        self.loop = Loop(self)
        self._scorers = Scorers(self._scorer)
        self._interrupt: KeyboardInterrupt | None = None  # In a listener, to be raised again after the turn.

    @classmethod
    def load(cls, directory: str | Path, config: EngineConfig | None = None, mesh: Mesh | None = None) -> "Engine":
        """The engine of a Hugging Face model directory, as `shipped.model` finds it."""
        config, directory = config or EngineConfig(), shipped.model(directory)
        mesh = _placement(config, mesh).mesh
        started = time.perf_counter()
        family, hf = families.family_of_directory(directory)
        vocabulary = load_vocabulary(directory, vocab_size=family.config_from_hf(hf).vocab_size)
        options: dict[str, Any] = {} if mesh is None else {"place": place(mesh, SERVING)}
        if config.weight_dtype is not None:
            options["convert"] = functools.partial(quantized, name=config.weight_dtype)
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
        if self.followers is not None and self.loop.closed and self.failure is None:
            raise RuntimeError(
                "An engine over several processes that was stopped cannot start again: the other processes have left "
                "it. Load the model anew in every process."
            )
        self.loop.start()

    def stop(self) -> None:
        """Ends the thread; requests still open get "done" with reason "cancelled"."""
        self.loop.stop()

    def submit(self, request: Request) -> None:
        """Queues a request; Refusal, before anything else happens, when it can never be served, and QueueFull when it
        cannot be now. RuntimeError when the engine was stopped or has failed."""
        self.check(request)
        params = request.params
        prompt = request.prompt_token_ids
        eos = self.vocabulary.eos_ids if self.vocabulary and not params.ignore_eos else frozenset()
        seed = params.seed if params.seed is not None else secrets.randbits(32)
        with self.loop.wake:
            self.loop.check_open()
            if request.id in self._live:
                raise Refusal(f"Request ids must be unique among those in flight; {request.id!r} is taken.")
            check_room(self.config, self._num_sequences, params.n)
            most, limited_by = output_limit(request, self.max_model_len, self.pool)
            siblings: list[Sequence] = []
            teller = Teller(request.id, request.listener, functools.partial(self._withdraw, siblings))
            sequences = [
                Sequence(
                    request=request,
                    index=index,
                    arrival=self._arrivals,
                    seed=(seed + index) % 2**32,
                    limit=most,
                    limited_by=limited_by,
                    stop_ids=eos | frozenset(params.stop_token_ids),
                    stream=TextStream(self.vocabulary.tokenizer if self.vocabulary else None, params.stop, prompt),
                    tokens=list(prompt),
                    teller=teller,
                )
                for index in range(params.n)
            ]
            self._arrivals += 1
            self._num_sequences += params.n
            siblings.extend(sequences)
            self._live[request.id] = siblings
            self._inbox.extend(sequences)
            self.loop.wake.notify()

    def check(self, request: Request) -> None:
        """Refusal, with the rule, the values and the way out, for a request that cannot be served."""
        prompt, params = request.prompt_token_ids, request.params
        if not prompt:
            raise Refusal("A prompt needs at least one token; this one is empty. Begin with a BOS token or some text.")
        self.check_tokens((*prompt, *params.stop_token_ids, *request.forced))
        if request.forced and params.n > 1:
            raise Refusal(f"Forced tokens are those of one continuation; this request has n={params.n}. Set n=1.")
        if len(prompt) >= self.max_model_len:
            raise Refusal(
                f"A prompt must leave room for one token in the context of {self.max_model_len}; this one has "
                f"{len(prompt)}. Shorten it, or load the model with a larger max_model_len (the model itself goes up "
                f"to {self.model_config.max_position})."
            )
        longest = len(prompt) + max(1, output_limit(request, self.max_model_len, self.pool)[0])
        if (pool := self.pool.too_small(longest)) is not None:
            raise Refusal(
                f"A request must fit the page pool alone: {longest} tokens need {pool.pages_for(longest)} pages "
                f"of {pool.page_size}, the pool has {pool.capacity}. Lower max_tokens, or give the engine more "
                "pages (num_pages, cache_gib)."
            )
        if params.stop and self.vocabulary is None:
            raise Refusal("Stop strings need a tokenizer, and this model directory has none; use stop_token_ids.")
        stops = frozenset(params.stop_token_ids) | (self.vocabulary.eos_ids if self.vocabulary else frozenset())
        if params.min_tokens and len(stops) > MAX_STOP_IDS:
            raise Refusal(f"min_tokens can hold back at most {MAX_STOP_IDS} stop ids; this request has {len(stops)}.")
        if params.n > most_open(self.config):
            raise Refusal(
                f"A request must fit the engine's queue alone: max_num_seqs + max_waiting is {most_open(self.config)}, "
                f"this one has n={params.n}. Lower n, or load the model with a larger max_waiting."
            )

    def check_tokens(self, token_ids: Iterable[int]) -> None:
        """Refusal for ids that the model has no embedding for."""
        vocab_size = self.runner.vocab_size
        strangers = [t for t in token_ids if not isinstance(t, int | np.integer) or not 0 <= t < vocab_size]
        if strangers:
            raise Refusal(
                f"Token ids must lie in [0, {vocab_size}), as whole numbers; the request has {strangers[:5]}. Tokenise "
                "it with the model's own tokenizer."
            )

    def cancel(self, request_id: str) -> None:
        """Ends a request: "done" with reason "cancelled". An unknown id is ignored: it may just have ended."""
        with self.loop.wake:  # Those that bear the id now: it may be taken again before the engine's thread looks.
            self._withdraw(self._live.get(request_id, ()))

    def _withdraw(self, siblings: Iterable[Sequence], error: BaseException | None = None) -> None:
        """Ends them in the next turn, as it is told to other processes. An interrupt of this thread goes on after."""
        with self.loop.wake:
            if self.led and error is not None:
                self._faulty.extend(siblings)
            elif open_ := tuple(siblings):
                self._inbox.append(open_)
                self.loop.wake.notify()
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            self._interrupt = error

    def score(self, tokens: Iterable[int], rows_per_step: int) -> np.ndarray:
        """Float32 logits [T, V] of a text; over several processes between two steps, by the engine's thread."""
        if self.failure is not None:
            self.loop.check_open()
        rows_per_step = min(rows_per_step, self.max_model_len)  # No text has more.
        if self.followers is None:
            return self._scorers(tuple(tokens), rows_per_step)
        self.start()
        result: Future[np.ndarray] = Future()
        self.enqueue(Scoring(tuple(tokens), rows_per_step, result))
        return result.result()

    def enqueue(self, scoring: Scoring) -> None:
        with self.loop.wake:
            self.loop.check_open()
            self._inbox.append(scoring)
            self.loop.wake.notify()

    def _scorer(self, rows_per_step: int) -> Scorer:
        """With a small cache of its own; compiled at its first text."""
        return Scorer(
            self.runner.model(),
            max_model_len=self.max_model_len,
            page_size=self.config.page_size,
            cache_dtype=self.runner.cache_dtype,
            rows_per_step=rows_per_step,
            placement=self.placement,
            cache_scales=self.runner.cache_scales,
        )

    def turn_with(self, others: Iterable["Engine"]) -> None:
        """From now on one thread takes the turns of all; before `start`."""
        self.loop.engines = (self, *others)
        for engine in others:
            engine.loop = self.loop

    @property
    def runners(self) -> tuple[StepRunner, ...]:
        """One: this engine's."""
        return (self.runner,)

    @property
    def here(self) -> tuple["Engine", ...]:
        """This one."""
        return (self,)

    def holds(self, request_id: str) -> bool:
        """Whether a request of that id is open."""
        return request_id in self._live

    @property
    def failure(self) -> BaseException | None:
        """What ended a turn early, so that no request can be taken any more."""
        return self.loop.failure

    @property
    def has_news(self) -> bool:
        """Whether something waits to be taken in."""
        return bool(self._inbox)

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def step(self) -> bool:
        """One turn, also for callers without a thread; False when there is nothing to do, as after a failure."""
        if self.failure is not None:
            return False
        try:
            busy = self._turn()
        except BaseException as error:  # Also an interrupt: nobody knows what of the turn is done.
            self.loop.fail(error)
            raise
        if self._interrupt is not None:
            interrupt, self._interrupt = self._interrupt, None
            raise interrupt
        return busy

    def _turn(self) -> bool:
        began, waited = time.perf_counter(), self.stats.wait_seconds
        self._take_inbox()
        plan = self.scheduler.schedule()
        if plan is not None:
            self._dispatch(plan)
        if self._in_flight and (plan is None or len(self._in_flight) >= self.config.pipeline_depth):
            self._receive(*self._in_flight.popleft())
        self.stats.host_seconds += time.perf_counter() - began - (self.stats.wait_seconds - waited)
        return plan is not None or bool(self._in_flight) or bool(self._inbox)

    def _take_inbox(self) -> None:
        with self.loop.wake:
            inbox, self._inbox = self._inbox, []
            self._taken.extend(inbox)
        if self.followers is not None:
            self.followers(inbox)
        while self._taken:
            item = self._taken[0]  # It stays until it is done: what is left when the turn fails is told.
            if isinstance(item, Sequence):
                self.scheduler.add(item)
            elif isinstance(item, Scoring):
                self._answer(item)
            else:
                for sequence in item:
                    self._finish(sequence, "cancelled")
            self._taken.popleft()
        if any(sequence.status is not Status.FINISHED for sequence in self._faulty):
            raise RuntimeError("Tokens could not be made text in this process, and could in the one that leads it.")
        self._faulty.clear()

    def _answer(self, scoring: Scoring) -> None:
        logits = self._scorers(scoring.tokens, scoring.rows_per_step)
        if scoring.result is not None:
            scoring.result.set_result(logits)

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
                sequence.teller(TokenEvent("scheduled", sequence.request.id, now, sequence.index))

    def _receive(self, plan: Plan, sampled: Sampled) -> None:
        began = time.perf_counter()
        tokens = np.asarray(sampled.tokens)
        self.stats.wait_seconds += time.perf_counter() - began
        if sampled.clipped is not None:
            written = plan.num_rows * plan.num_steps * self.runner.numbers_per_token
            self.stats.count_cache(written, int(np.asarray(sampled.clipped)))
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

    def _read(self, sequence: Sequence, new: list[int]) -> tuple[str, FinishReason | None, int]:
        """Appends tokens up to the first that ends the sequence: their text, why it ends, and how many they are."""
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
        return text, reason, count

    def _hand_over(self, sequence: Sequence, new: list[int], logprobs: list[dict[int, float]] | None) -> None:
        try:
            text, reason, count = self._read(sequence, new)
        except BaseException as error:  # A panic of the tokenizer's Rust is no Exception.
            what = f"The tokens of request {sequence.request.id!r} could not be made text"
            return sequence.teller.fail(what, error)
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
        sequence.teller(event)
        if reason is not None:
            self._finish(sequence, reason)

    def _finish(
        self, sequence: Sequence, reason: FinishReason, error: str = "", failure: BaseException | None = None
    ) -> None:
        request = sequence.request
        with self.loop.wake:  # Another thread may tell of a failure meanwhile.
            if sequence.status is Status.FINISHED:
                return
            if failure is None:
                self.scheduler.finish(sequence)
            else:  # Nobody knows what the scheduler has half done, and it plans no more.
                sequence.status = Status.FINISHED
            siblings = self._live[request.id]
            siblings.remove(sequence)
            self._num_sequences -= 1
            if not siblings:
                del self._live[request.id]
        self.stats.preemptions += sequence.num_preempted
        event = TokenEvent(
            "done",
            request.id,
            time.perf_counter(),
            sequence.index,
            finish_reason=reason,
            error=error,
            limit=sequence.limited_by if reason == "length" else None,
            fatal=failure is not None,
            seed=sequence.seed if request.params.temperature > 0 else None,
        )
        sequence.teller(event)

    def end_all(self, reason: FinishReason, error: str, *, failure: BaseException | None = None) -> None:
        """Ends every request and every text to score; `failure` when the engine has failed."""
        with self.loop.wake:
            unread, self._inbox = [*self._taken, *self._inbox], []
            everyone = [sequence for sequences in self._live.values() for sequence in sequences]
        for sequence in everyone:
            self._finish(sequence, reason, error, failure)
        for item in unread:
            if isinstance(item, Scoring) and item.result is not None and not item.result.done():
                told = RuntimeError(error)
                told.__cause__ = failure
                item.result.set_exception(told)
        self._in_flight.clear()


def _logprobs(arrays: tuple[np.ndarray, np.ndarray], i: int, chunk: Chunk, count: int) -> list[dict[int, float]]:
    """The chosen token first, then the `count` most likely ones."""
    ids, values = (a[: chunk.samples, i, : 1 + count].tolist() for a in arrays)
    return [dict(zip(ids_, values_, strict=True)) for ids_, values_ in zip(ids, values, strict=True)]


def _check_weights(model: CausalLM, config: EngineConfig) -> None:
    """Refusal for a model in other weights than the config says."""
    found = sorted(weight_dtypes(model) & FORMATS.keys())
    if (config.weight_dtype in found) if config.weight_dtype else not found:
        return
    raise Refusal(
        f"The model's weights must be what weight_dtype says, {config.weight_dtype}; they are in "
        f"{', '.join(found) or 'no format of fewer bits'}. Load it with Engine.load, or call "
        "flexjax.nn.quantize_weights(model, weight_dtype) first."
    )


def _placement(config: EngineConfig, mesh: Mesh | None) -> Placement:
    return Placement(make_mesh(config.mesh) if mesh is None and config.mesh is not None else mesh)
