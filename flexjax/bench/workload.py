"""What is asked: prompts cut from held-out text, with seeded lengths or those of a trace."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from flexjax.bench.trace import TraceRow, read_trace, scale
from flexjax.data import held_out_documents
from flexjax.engine import CompletionOutput, SamplingParams
from flexjax.refusal import Refusal


@dataclasses.dataclass(frozen=True)
class Item:
    """One request to be made: prompt, how to continue it, and when, in seconds from the start.

    Forced tokens, where there are any, are the whole answer: the last of them stops it, or is the last asked for.
    """

    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    offset_s: float | None = None  # None leaves the time to the scenario.
    forced: tuple[int, ...] = ()  # Tokens that stand in place of the chosen ones.

    @property
    def n_expected(self) -> int:
        """How many tokens the answer must have. With an end that no side is told, `max_tokens` is more."""
        return len(self.forced) or self.params.max_tokens or 0


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

    Every answer has its exact length (`ignore_eos`), so that all sides do the same work. A prompt begins with what the
    tokenizer puts before any text (BOS), which counts in its length.
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


def with_unknown_ends(
    items: Sequence[Item], reference: Sequence[CompletionOutput], eos_id: int, max_tokens: int
) -> tuple[Item, ...]:
    """The same items, answers as long as before, but no side is told where they end.

    Each asks for `max_tokens` and is forced: through the reference's tokens, and in place of the last of them to
    `eos_id`, which stops it. An EOS that the reference gave earlier is forced to another token, which one does not
    matter. `reference[i]` answers `items[i]` with all the tokens that it asks for; else Refusal, and where one asks
    for more than `max_tokens`.
    """
    if len(reference) < len(items):
        raise Refusal(
            f"Ends are made unknown with the reference's answer to every item; got {len(reference)} answers to "
            f"{len(items)} items. Let the reference answer all: raise quality.prompts."
        )
    stand_in = 1 if eos_id == 0 else 0
    found = []
    for item, answer in zip(items, reference, strict=False):
        if not len(answer.token_ids) == item.n_expected <= max_tokens:
            raise Refusal(
                f"The reference must have all tokens that an item asks for, {max_tokens} at most; it has "
                f"{len(answer.token_ids)} of {item.n_expected}. Raise max_tokens, or make the reference anew."
            )
        own = tuple(stand_in if token == eos_id else token for token in answer.token_ids[:-1])
        params = dataclasses.replace(item.params, max_tokens=max_tokens, stop_token_ids=(eos_id,))
        found.append(dataclasses.replace(item, params=params, forced=(*own, eos_id)))
    return tuple(found)


def text_start(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that the tokenizer puts before any text: BOS, mostly, or none.

    They are what a text has before it when it is encoded with special tokens and not when without. Refusal for a
    tokenizer that gives a text no tokens, or others between special tokens.
    """
    plain = tokenizer.encode("text", add_special_tokens=False).ids
    framed = tokenizer.encode("text").ids
    for before in range(len(framed)):
        if plain and framed[before : before + len(plain)] == plain:
            return tuple(framed[:before])
    raise Refusal(
        f"A tokenizer puts special tokens before and after a text's own; this one makes {framed} of the text's {plain}."
        " Take the tokenizer.json of a model that continues text."
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
    """Runs of held-out tokens, each from a random place and behind the tokenizer's own start: no two share a prefix
    past it that a cache could reuse. A prompt no longer than that start is nothing else."""
    first = text_start(tokenizer)
    text = "\n".join(document.text for document in held_out_documents())
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) <= max(lengths):
        raise Refusal(
            f"The held-out text has {len(ids)} tokens, too few for a prompt of {max(lengths)}. Lower input.high."
        )
    starts = [int(rng.integers(0, len(ids) - n)) for n in lengths]
    return [(*first, *ids[start : start + n])[:n] for start, n in zip(starts, lengths, strict=True)]
