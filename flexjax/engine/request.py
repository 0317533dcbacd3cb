"""What goes into the engine and what comes out: sampling parameters, requests, events, outputs."""

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from typing import Literal

from flexjax.refusal import Refusal

FinishReason = Literal["stop", "length", "cancelled", "error"]


class QueueFull(Refusal):
    """An engine holds as many requests as it may; it takes this one once others have ended."""


MAX_LOGPROBS = 20  # Static width of the top-k that a step returns.


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How one prompt is continued; the names are vLLM's.

    Raises Refusal at construction for a value outside its range.
    """

    n: int = 1  # Independent continuations of the prompt.
    temperature: float = 1.0  # 0 is greedy.
    top_k: int = 0  # 0 keeps the whole vocabulary.
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # Over prompt and output; 1 is none.
    presence_penalty: float = 0.0  # Over the output alone.
    frequency_penalty: float = 0.0
    seed: int | None = None  # Of the first continuation, the next has seed + 1; None draws one and reports it.
    max_tokens: int = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # Most likely tokens reported a position, at most MAX_LOGPROBS.

    def __post_init__(self):
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        whole = [("n", self.n), ("top_k", self.top_k), ("max_tokens", self.max_tokens), ("min_tokens", self.min_tokens)]
        whole += [("stop_token_ids", i) for i in self.stop_token_ids] + [("seed", self.seed or 0)]
        whole += [("logprobs", self.logprobs or 0)]
        for name, value in whole:
            if not isinstance(value, numbers.Integral) or not -(2**31) <= value < 2**32:
                raise Refusal(f"SamplingParams.{name} must be a whole number of 32 bits; got {value!r}.")
        rules = [
            ("n", self.n >= 1, "at least 1"),
            # Below 1e-5 the scaled logits overflow float32; so would the penalty's reciprocal.
            ("temperature", self.temperature == 0 or 1e-5 <= self.temperature < 1e5, "0 (greedy) or in [1e-5, 1e5)"),
            ("top_k", 0 <= self.top_k < 2**31, "0 (off) or positive, below 2**31"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", 1e-3 <= self.repetition_penalty <= 1e3, "in [1e-3, 1e3]"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "in [-2, 2]"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "in [-2, 2]"),
            ("max_tokens", 1 <= self.max_tokens < 2**30, "at least 1 and below 2**30"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, f"in [0, max_tokens={self.max_tokens}]"),
            ("stop", all(self.stop), "non-empty strings"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, f"None or 0..{MAX_LOGPROBS}"),
            ("seed", self.seed is None or 0 <= self.seed < 2**32, "None or in [0, 2**32)"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise Refusal(f"SamplingParams.{name} must be {rule}; got {getattr(self, name)!r}.")


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
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """One prompt's answers, `outputs[i].index == i`."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: Sequence[CompletionOutput]
