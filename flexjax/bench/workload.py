"""What is asked: prompts cut from held-out text, with seeded lengths or those of a trace."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from flexjax.bench.trace import TraceRow, read_trace, scale
from flexjax.engine.request import SamplingParams
from flexjax.refusal import Refusal
from flexjax.train.corpus import held_out_documents


@dataclasses.dataclass(frozen=True)
class Item:
    """One request to be made: prompt, how to continue it, and when, in seconds from the start."""

    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    offset_s: float | None = None  # None leaves the time to the scenario.


@dataclasses.dataclass(frozen=True)
class Lengths:
    """A log-normal distribution of token counts, clipped to `low..high`."""

    median: float  # tokens
    sigma: float  # Standard deviation of the logarithm; 0 makes every length the median.
    low: int  # tokens
    high: int  # tokens

    def __post_init__(self):
        if not (1 <= self.low <= self.median <= self.high and self.sigma >= 0):
            raise Refusal(f"Lengths need 1 <= low <= median <= high and sigma >= 0; got {self}.")

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        drawn = self.median * np.exp(self.sigma * rng.standard_normal(count))
        return [int(n) for n in np.clip(np.rint(drawn), self.low, self.high)]


@dataclasses.dataclass(frozen=True)
class WorkloadConfig:
    """Prompts and output lengths; the same seed gives the same workload."""

    prompts: int = 512  # Different prompts; of a trace, its first so many rows.
    input: Lengths = Lengths(median=48, sigma=0.5, low=8, high=128)
    output: Lengths = Lengths(median=40, sigma=0.5, low=8, high=128)
    temperature: float = 0.0  # 0 is greedy.
    seed: int = 0
    trace: str = ""  # Path of a trace whose lengths and times replace the distributions.
    trace_rate: float = 1.0  # Arrivals so many times as dense as recorded.
    trace_length: float = 1.0  # Token counts times this, then clipped to input.high and output.high.

    def __post_init__(self):
        if self.prompts < 1:
            raise Refusal(f"A workload needs at least one prompt; got prompts={self.prompts}.")


def build_workload(config: WorkloadConfig, tokenizer: Tokenizer, max_context: int) -> tuple[Item, ...]:
    """The items of `config`, tokenised by the target's own tokenizer.

    Every answer has its exact length (`ignore_eos`), so that all sides do the same work.
    Refusal where the longest request does not fit into `max_context` tokens.
    """
    longest = config.input.high + config.output.high
    if longest > max_context:
        raise Refusal(
            f"The longest request must fit the model's context: input.high + output.high = {config.input.high} + "
            f"{config.output.high} = {longest} tokens, the model has {max_context}. Lower one of them."
        )
    rng = np.random.default_rng(config.seed)
    rows = _trace_rows(config) if config.trace else None
    if rows is None:
        inputs = config.input.draw(rng, config.prompts)
        outputs = config.output.draw(rng, config.prompts)
        offsets: Sequence[float | None] = [None] * config.prompts
    else:
        inputs = [row.input_tokens for row in rows]
        outputs = [row.output_tokens for row in rows]
        offsets = [row.time_s for row in rows]
    prompts = _cut_prompts(tokenizer, inputs, rng)
    return tuple(
        Item(
            prompt,
            SamplingParams(temperature=config.temperature, max_tokens=n_out, ignore_eos=True, seed=config.seed),
            offset,
        )
        for prompt, n_out, offset in zip(prompts, outputs, offsets, strict=True)
    )


def _trace_rows(config: WorkloadConfig) -> list[TraceRow]:
    return scale(
        read_trace(config.trace, limit=config.prompts),
        rate=config.trace_rate,
        length=config.trace_length,
        max_input=config.input.high,
        max_output=config.output.high,
    )


def _cut_prompts(tokenizer: Tokenizer, lengths: Sequence[int], rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Runs of held-out tokens, each from a random place: no two share a prefix that a cache could reuse."""
    text = "\n".join(document.text for document in held_out_documents())
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) <= max(lengths):
        raise Refusal(
            f"The held-out text has {len(ids)} tokens, too few for a prompt of {max(lengths)}. Lower input.high."
        )
    starts = [int(rng.integers(0, len(ids) - n)) for n in lengths]
    return [tuple(ids[start : start + n]) for start, n in zip(starts, lengths, strict=True)]
