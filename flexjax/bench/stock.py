"""The side to beat: what one writes first to serve a model with JAX, and writes properly.

float32, whole-request static batching: up to `batch_size` waiting requests are taken when the batch
before has ended entirely, padded to the longest, and decoded one jitted step a dispatch until the
last of them has ended. The cache is made anew for each batch and donated from step to step within it.
Every shape is compiled at the start, sizes are padded to few buckets only so far as that needs, and
each token is handed over as soon as its step has made it. Nothing is slowed on purpose.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flexjax import families, shipped
from flexjax.bench.result import StartUp, StatsSample
from flexjax.bench.static_batch import Batch, Programs
from flexjax.bench.target import TargetStats, allocated_dtypes
from flexjax.engine import FinishReason, Request, TextStream, TokenEvent, load_vocabulary
from flexjax.refusal import Refusal


@dataclasses.dataclass(frozen=True)
class StockConfig:
    dtype: str = "float32"
    batch_size: int = 16
    max_prompt_tokens: int = 128
    max_output_tokens: int = 128

    def __post_init__(self):
        for field in ("batch_size", "max_prompt_tokens", "max_output_tokens"):
            if getattr(self, field) < 1:
                raise Refusal(f"StockConfig.{field} must be at least 1; got {getattr(self, field)}.")


@dataclasses.dataclass(eq=False)
class _Row:
    """One request in the running batch."""

    request: Request
    stream: TextStream
    num_out: int = 0
    ended: bool = False


class StockTarget:
    """Serves one model by static batching; see the module's docstring."""

    def __init__(self, directory: str | Path, config: StockConfig, name: str = "stock"):
        self.name = name
        self.config = config
        self._directory = shipped.model(directory)
        self._waiting: collections.deque[Request] = collections.deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None
        self._samples: collections.deque[StatsSample] = collections.deque(maxlen=100_000)
        self._host_s, self._device_s = 0.0, 0.0

    def start(self) -> StartUp:
        began = time.perf_counter()
        family, _ = families.family_of_directory(self._directory)
        model = family.load(self._directory, dtype=jnp.dtype(self.config.dtype))
        self._vocabulary = load_vocabulary(self._directory, vocab_size=model.config.vocab_size)
        self._programs = Programs(
            model,
            dtype=self.config.dtype,
            batch_size=self.config.batch_size,
            max_prompt=self.config.max_prompt_tokens,
            max_output=self.config.max_output_tokens,
        )
        loaded = time.perf_counter()
        self._programs.compile()
        compiled = time.perf_counter()
        self._thread = threading.Thread(target=self._serve, name=f"flexjax-{self.name}", daemon=True)
        self._thread.start()
        return StartUp(load_s=loaded - began, compile_s=compiled - loaded)

    def submit(self, request: Request) -> None:
        """Refusal for a request that was not planned for: no shape is compiled for it."""
        self._check(request)
        with self._wake:
            if self._failure is not None or self._stopping:
                raise RuntimeError("The stock side has ended and takes no requests.") from self._failure
            self._waiting.append(request)
            self._wake.notify()

    def stop(self) -> None:
        if self._thread is None:
            return
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()
        self._thread = None

    def describe(self) -> dict[str, Any]:
        programs = self._programs
        return {
            "software": "flexjax stock",
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "weights_dtype": allocated_dtypes(
                "weights", self.config.dtype, (w.dtype for w in jax.tree.leaves(programs.weights))
            ),
            "cache_dtype": self.config.dtype,
            "weights_bytes": sum(w.nbytes for w in jax.tree.leaves(programs.weights)),
            "cache_bytes_largest": programs.cache_bytes(programs.batch_sizes[-1], programs.cache_lengths[-1]),
            "batching": "static, whole requests",
            "batch_size": self.config.batch_size,
            "decode_steps_per_dispatch": 1,
        }

    def stats(self) -> TargetStats:
        return TargetStats(tuple(self._samples), self._host_s, self._device_s)

    def _check(self, request: Request) -> None:
        n_in, params = len(request.prompt_token_ids), request.params
        limits = self.config
        n_out = params.max_tokens
        if not 1 <= n_in <= limits.max_prompt_tokens or n_out is None or n_out > limits.max_output_tokens:
            raise Refusal(
                f"The stock side was compiled for 1..{limits.max_prompt_tokens} prompt and at most "
                f"{limits.max_output_tokens} output tokens; the request has {n_in} and {n_out}. "
                "Raise the workload's limits, from which these are taken."
            )
        plain = dataclasses.replace(
            params,
            temperature=0.0,
            max_tokens=16,
            seed=None,
            ignore_eos=False,
            stop=(),
            stop_token_ids=(),
            logprobs=None,
        )
        if plain != type(params)(temperature=0.0) or params.logprobs not in (None, 0):
            raise Refusal(
                "The stock side samples by argmax or by temperature alone, and knows the chosen token's "
                f"log-probability (logprobs=0) alone; drop the other sampling parameters from the workload: {params}."
            )

    def _serve(self) -> None:
        rows: list[_Row] = []
        try:
            while rows := self._take():
                self._run(rows)
            why = "the target was stopped"
        except Exception as error:  # Told to every open request and to whoever submits the next.
            self._failure = error
            why = f"the stock side failed: {error!r}"
        with self._wake:
            open_requests = [row.request for row in rows if not row.ended] + list(self._waiting)
            self._waiting.clear()
        for request in open_requests:
            _tell(request, "done", finish_reason="error", error=why)

    def _take(self) -> list[_Row]:
        """The next batch, when somebody waits; empty when it is time to stop."""
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self._stopping)
            if self._stopping:
                return []
            count = min(self.config.batch_size, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(count)]
        tokenizer = self._vocabulary.tokenizer if self._vocabulary else None
        return [_Row(request, TextStream(tokenizer, request.params.stop)) for request in batch]

    def _run(self, rows: list[_Row]) -> None:
        """Runs a batch to its last token."""
        began, waited = time.perf_counter(), self._device_s
        requests = [row.request for row in rows]
        for request in requests:
            _tell(request, "scheduled")
        batch = Batch.begin(self._programs, requests)
        while True:
            before = time.perf_counter()
            tokens = batch.read()
            wanted = any(row.request.params.logprobs is not None for row in rows)
            logprobs = batch.logprobs() if wanted else np.zeros(len(tokens), np.float32)
            self._device_s += time.perf_counter() - before
            self._sample(rows, batch)
            for row, token, logprob in zip(rows, tokens, logprobs, strict=False):  # Rows past the batch are padding.
                if not row.ended:
                    self._hand_over(row, int(token), float(logprob))
            if all(row.ended for row in rows):
                break
            if self._stopping:
                raise RuntimeError("stopped in the middle of a batch")
            batch.advance()
        self._host_s += time.perf_counter() - began - (self._device_s - waited)

    def _hand_over(self, row: _Row, token: int, logprob: float) -> None:
        params = row.request.params
        row.num_out += 1
        text = row.stream.push(token)
        eos = self._vocabulary.eos_ids if self._vocabulary and not params.ignore_eos else frozenset()
        reason: FinishReason | None = None
        if token in eos or token in params.stop_token_ids or row.stream.stopped:
            reason = "stop"
        elif row.num_out == params.max_tokens:
            reason = "length"
        logprobs = () if params.logprobs is None else ({token: logprob},)
        text += row.stream.flush() if reason else ""
        _tell(row.request, "token", token_ids=(token,), text=text, logprobs=logprobs)
        if reason:
            row.ended = True
            _tell(row.request, "done", finish_reason=reason)

    def _sample(self, rows: Sequence[_Row], batch: Batch) -> None:
        live = [row for row in rows if not row.ended]
        cells = sum(len(row.request.prompt_token_ids) + row.num_out for row in live)
        self._samples.append(
            StatsSample(time.perf_counter(), len(live), len(self._waiting), cells / (batch.size * batch.cache_length))
        )


def _tell(request: Request, kind: Any, **fields: Any) -> None:
    if request.listener is not None:
        request.listener(TokenEvent(kind, request.id, time.perf_counter(), **fields))
