"""What goes into the engine and what comes out: sampling parameters, requests, events, outputs."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from flexjax.refusal import Refusal

FinishReason = Literal["stop", "length", "cancelled", "error"]

# What ended an answer of "length": its own max_tokens, the model's context, or the pages that the engine has.
Limit = Literal["max_tokens", "max_model_len", "num_pages"]


class QueueFull(Refusal):
    """An engine holds as many requests as it may; it takes this one once others have ended."""


MAX_LOGPROBS = 20  # Static width of the top-k that a step returns.
MAX_N = 1024  # Each continuation takes memory from its submission on.


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How one prompt is continued; the names are vLLM's.

    Raises Refusal at construction for a value outside its range.
    """

    n: int = 1  # Independent continuations of the prompt, at most MAX_N.
    temperature: float = 1.0  # 0 is greedy.
    top_k: int = 0  # 0 or -1 keeps the whole vocabulary.
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # Over prompt and output; 1 is none.
    presence_penalty: float = 0.0  # Over the output alone.
    frequency_penalty: float = 0.0
    seed: int | None = None  # The first continuation's; the next has seed + 1. None or -1 draws one and reports it.
    max_tokens: int | None = 16  # None goes on to the end of the context, or as far as the engine's pages do.
    min_tokens: int = 0
    stop: tuple[str, ...] = ()  # One string, several, or None. A special token's name stops at that token.
    stop_token_ids: tuple[int, ...] = ()  # Or None.
    ignore_eos: bool = False
    logprobs: int | None = None  # Most likely tokens reported a position, at most MAX_LOGPROBS.

    def __post_init__(self):
        self._normalise()
        for name, holds, rule in self._rules():
            if not holds:
                raise Refusal(f"SamplingParams.{name} must be {rule}; got {getattr(self, name)!r}.")

    def _normalise(self) -> None:
        """vLLM's spellings and NumPy's numbers to plain values; Refusal for what is no value of the field's type."""
        stop = _several("stop", (self.stop,) if isinstance(self.stop, str) else self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise Refusal(f"SamplingParams.stop must be non-empty strings; got {self.stop!r}.")
        ids = tuple(_whole("stop_token_ids", i) for i in _several("stop_token_ids", self.stop_token_ids))
        plain: dict[str, Any] = {"stop": stop, "stop_token_ids": ids}
        for name in ("n", "top_k", "min_tokens"):
            plain[name] = _whole(name, getattr(self, name))
        for name in ("max_tokens", "seed", "logprobs"):
            value = getattr(self, name)
            plain[name] = None if value is None else _whole(name, value)
        for name in _REAL:
            plain[name] = _real(name, getattr(self, name))
        plain["top_k"] = 0 if plain["top_k"] == -1 else plain["top_k"]
        plain["seed"] = None if plain["seed"] == -1 else plain["seed"]
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def _rules(self) -> list[tuple[str, bool, str]]:
        """Field, whether its rule holds, and the rule."""
        most = 2**30 - 1 if self.max_tokens is None else self.max_tokens
        return [
            ("n", 1 <= self.n <= MAX_N, f"in [1, {MAX_N}]; send more requests for more"),
            # Below 1e-5 the scaled logits overflow float32; so would the penalty's reciprocal.
            ("temperature", self.temperature == 0 or 1e-5 <= self.temperature < 1e5, "0 (greedy) or in [1e-5, 1e5)"),
            ("top_k", 0 <= self.top_k < 2**31, "0 or -1 (off) or positive, below 2**31"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", 1e-3 <= self.repetition_penalty <= 1e3, "in [1e-3, 1e3]"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "in [-2, 2]"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "in [-2, 2]"),
            ("max_tokens", 1 <= most < 2**30, "None (to the end of the context), or at least 1 and below 2**30"),
            ("min_tokens", 0 <= self.min_tokens <= most, f"in [0, {most}], at most max_tokens"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, f"None or 0..{MAX_LOGPROBS}"),
            ("seed", self.seed is None or 0 <= self.seed < 2**32, "None or -1 (drawn) or in [0, 2**32)"),
        ]


_REAL = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def _several(name: str, value: Any) -> tuple[Any, ...]:
    if value is not None and not isinstance(value, Iterable):
        raise Refusal(f"SamplingParams.{name} must be several values or None; got {value!r}.")
    return () if value is None else tuple(value)


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int | np.integer) or not -(2**31) <= value < 2**32:
        raise Refusal(f"SamplingParams.{name} must be a whole number of 32 bits; got {value!r}.")
    return int(value)


def _real(name: str, value: object) -> float:
    if not isinstance(value, int | float | np.integer | np.floating):
        raise Refusal(f"SamplingParams.{name} must be a number; got {value!r}.")
    return float(value)


@dataclasses.dataclass(frozen=True)
class TokenEvent:
    """One thing that happened to one continuation, stamped with `time.perf_counter()` in seconds
    on the host at the moment it was handed over.

    - "scheduled": its first rows went into a step (once; not again after a preemption).
    - "token": new tokens. `token_ids` are in order; several when one dispatch made several.
    - "done": the end, always last and exactly once, with `finish_reason`.
    """

    kind: Literal["scheduled", "token", "done"]
    request_id: str
    time: float  # s
    index: int = 0  # Which of the request's n continuations.
    token_ids: tuple[int, ...] = ()
    text: str = ""  # Newly final text; never half a character, never part of a stop string.
    logprobs: tuple[dict[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    error: str = ""  # With finish_reason "error": rule, values, way out.
    limit: Limit | None = None  # With finish_reason "length": which one was reached.
    fatal: bool = False  # With finish_reason "error": the engine has failed, not this request alone.
    seed: int | None = None  # With "done": what `CompletionOutput.seed` is.


Listener = Callable[[TokenEvent], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt in tokens and how to continue it; `id` is unique among those in flight."""

    id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    priority: int = 0  # Lower goes first; equal priorities go first come, first served.
    listener: Listener | None = dataclasses.field(default=None, compare=False)
    forced: tuple[int, ...] = ()  # Output tokens chosen in place of those sampled, from the first; then it goes on.

    def __post_init__(self):
        if not isinstance(self.params, SamplingParams):
            raise Refusal(f"A request is sampled by SamplingParams; got {self.params!r}.")
        if not isinstance(self.priority, int | np.integer):
            raise Refusal(f"A request's priority must be a whole number, lower for sooner; got {self.priority!r}.")


@dataclasses.dataclass(frozen=True)
class CompletionOutput:
    """One continuation. `SamplingParams(seed=output.seed)` with n=1 makes it again; `seed` is None where nothing is
    drawn (temperature 0)."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[dict[int, float], ...] | None = None
    error: str = ""
    limit: Limit | None = None  # With finish_reason "length": which one was reached.
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """One prompt's answers, `outputs[i].index == i`."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: Sequence[CompletionOutput]
