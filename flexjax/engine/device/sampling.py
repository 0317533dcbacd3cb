"""Choosing the next token on the device, for a batch in which every sequence has its own rules.

Each stage stands behind a `lax.cond` and costs nothing while no sequence of the batch asks for it, so
that one compiled step serves greedy and sampled requests alike. The chosen token depends on the
sequence's own logits, seed and position alone.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from flexjax.engine.request import MAX_LOGPROBS
from flexjax.hardware.sharding import SERVING, split_ways
from flexjax.kernels import registry
from flexjax.kernels.sample_top import sample_top

MAX_STOP_IDS = 8  # Token ids that min_tokens can hold back.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Controls:
    """The sampling parameters of B sequences; see `SamplingParams` for each one's meaning."""

    seed: UInt[Array, "B"]
    temperature: Float[Array, "B"]
    top_k: Int[Array, "B"]
    top_p: Float[Array, "B"]
    min_p: Float[Array, "B"]
    repetition: Float[Array, "B"]
    presence: Float[Array, "B"]
    frequency: Float[Array, "B"]
    min_length: Int[Array, "B"]  # Tokens, prompt included, before a stop id may come.
    stop_ids: Int[Array, "B I"]  # Padded with -1.
    prompt_lengths: Int[Array, "B"]
    wants_logprobs: Bool[Array, "B"]
    forced: Int[Array, "B"]  # The token to choose, whatever the rules say; -1 leaves the choice to them.

    @property
    def penalised(self) -> Bool[Array, "B"]:
        return (self.repetition != 1) | (self.presence != 0) | (self.frequency != 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What the device remembers of the sequences in its slots; row `max_num_seqs` is for padding.

    Tokens are counted when they are fed, at a position below the prompt's length or not, so that
    prefill, decoding and recomputation after a preemption keep the same books.
    """

    last_tokens: Int[Array, "slots"]
    in_prompt: Bool[Array, "slots V"]
    output_counts: Int[Array, "slots V"]


MEMORY_AXES = {"last_tokens": ("slots",), "in_prompt": ("slots", "vocab"), "output_counts": ("slots", "vocab")}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampled:
    """The chosen tokens; log-probabilities are those of the model before any rule was applied, the
    chosen token's first, then the MAX_LOGPROBS most likely (zeros when no sequence wants them).
    With a whole step's tokens comes how many numbers its cache has clipped so far, modulo 2**32, if it has a count."""

    tokens: Int[Array, "B"]
    logprob_ids: Int[Array, "B 1+MAX_LOGPROBS"]
    logprobs: Float[Array, "B 1+MAX_LOGPROBS"]
    clipped: UInt[Array, ""] | None = None


def empty_memory(num_slots: int, vocab_size: int) -> Memory:
    return Memory(
        jnp.zeros((num_slots,), jnp.int32),
        jnp.zeros((num_slots, vocab_size), bool),
        jnp.zeros((num_slots, vocab_size), jnp.int32),
    )


def count_fed(
    memory: Memory,
    controls: Controls,
    slots: Int[Array, "B"],
    tokens: Int[Array, "T"],
    positions: Int[Array, "T"],
    query_starts: Int[Array, "B+1"],
    fresh: Bool[Array, "B"],
) -> Memory:
    """The memory after a step's rows; unchanged unless a sequence of the batch is penalised.

    Rows of a sequence that is not `fresh` repeat what was fed before, and are not counted again.
    """

    def count(memory: Memory) -> Memory:
        rows = jnp.arange(tokens.shape[0])
        owner = jnp.searchsorted(query_starts, rows, side="right").astype(jnp.int32) - 1
        live = rows < query_starts[-1]
        owner = jnp.where(live, owner, 0)
        live &= fresh[owner]
        slot = jnp.where(live, slots[owner], memory.last_tokens.shape[0])  # Out of bounds: dropped.
        from_prompt = positions < controls.prompt_lengths[owner]
        lengths = query_starts[1:] - query_starts[:-1]
        begins = (positions[jnp.minimum(query_starts[:-1], rows.size - 1)] == 0) & (lengths > 0)
        keep = jnp.ones_like(memory.last_tokens, bool).at[slots].min(~begins)[:, None]
        in_prompt = (memory.in_prompt & keep).at[slot, tokens].max(from_prompt, mode="drop")
        counts = jnp.where(keep, memory.output_counts, 0)
        counts = counts.at[slot, tokens].add((~from_prompt).astype(jnp.int32), mode="drop")
        return Memory(memory.last_tokens, in_prompt, counts)

    return jax.lax.cond(jnp.any(controls.penalised), count, lambda m: m, memory)


def sample(
    logits: Float[Array, "B V"],
    controls: Controls,
    memory: Memory,
    slots: Int[Array, "B"],
    lengths: Int[Array, "B"],
) -> Sampled:
    """The token that follows each sequence of `lengths` tokens.

    In this order: logits → penalties → stop ids held back before min_tokens → temperature → top-k,
    top-p, min-p → Gumbel-max with a key made of the seed and the position. Temperature 0 takes the
    largest logit after penalties. A forced token takes the place of what they chose.
    """
    penalised, held_back = jnp.any(controls.penalised), jnp.any(lengths < controls.min_length)
    random = jnp.any(controls.temperature > 0)

    def by_rules(logits):
        logits = _when(penalised, _penalise, logits, controls, memory, slots)
        logits = _when(held_back, _hold_back_stops, logits, controls, lengths)
        return _argmax(_when(random, _draw, logits, controls, lengths))

    # Tokens come out of it, not logits: XLA copies what a branch hands through.
    raw, tokens = logits, jax.lax.cond(penalised | held_back | random, by_rules, _argmax, logits)
    tokens = jnp.where(controls.forced >= 0, controls.forced, tokens)

    def most_likely(raw, tokens):
        logprobs = jax.nn.log_softmax(raw, axis=-1)
        top, ids = jax.lax.top_k(logprobs, min(MAX_LOGPROBS, raw.shape[-1]))
        pad = ((0, 0), (0, MAX_LOGPROBS - ids.shape[-1]))
        own = jnp.take_along_axis(logprobs, tokens[:, None], axis=-1)
        return (
            jnp.concatenate([tokens[:, None], jnp.pad(ids, pad, constant_values=-1)], axis=-1).astype(jnp.int32),
            jnp.concatenate([own, jnp.pad(top, pad, constant_values=-jnp.inf)], axis=-1),
        )

    def nothing(raw, tokens):
        shape = (tokens.shape[0], 1 + MAX_LOGPROBS)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)

    ids, logprobs = jax.lax.cond(jnp.any(controls.wants_logprobs), most_likely, nothing, raw, tokens)
    return Sampled(tokens, ids, logprobs)


def _argmax(logits):
    """The first largest. On one CPU the largest of each block of tokens is found first, and then the place within one
    block: XLA takes five times as long for places as for the largest."""
    block = math.gcd(logits.shape[-1], 128)
    if block < 16 or registry.platform() != "cpu" or split_ways("vocab", SERVING) > 1:
        return _first_largest(logits)
    blocks = logits.reshape(logits.shape[0], -1, block)
    chosen = _first_largest(jnp.max(blocks, axis=-1))
    within = jnp.take_along_axis(blocks, chosen[:, None, None], axis=1)[:, 0]
    return chosen * block + _first_largest(within)


def _first_largest(x):
    """Two plain reductions: XLA's CPU backend takes 5 times as long for jnp.argmax."""
    ids = jnp.broadcast_to(jnp.arange(x.shape[-1], dtype=jnp.int32), x.shape)
    largest = jnp.broadcast_to(jnp.max(x, axis=-1, keepdims=True), x.shape)
    return jnp.min(jnp.where(x == largest, ids, x.shape[-1] - 1), axis=-1)


def _when(condition, stage, logits, *operands):
    return jax.lax.cond(condition, stage, lambda logits, *_: logits, logits, *operands)


def _penalise(logits, controls: Controls, memory: Memory, slots):
    counts = memory.output_counts[slots]
    seen = memory.in_prompt[slots] | (counts > 0)
    factor = controls.repetition[:, None]
    logits = jnp.where(seen, jnp.where(logits > 0, logits / factor, logits * factor), logits)
    logits -= controls.frequency[:, None] * counts.astype(jnp.float32)
    return logits - controls.presence[:, None] * (counts > 0).astype(jnp.float32)


def _hold_back_stops(logits, controls: Controls, lengths):
    early = (lengths < controls.min_length)[:, None]
    ids = jnp.where(early & (controls.stop_ids >= 0), controls.stop_ids, logits.shape[-1])
    rows = jnp.arange(logits.shape[0])[:, None]
    return logits.at[rows, ids].set(-jnp.inf, mode="drop")


def _draw(logits, controls: Controls, lengths):
    random = controls.temperature > 0
    scaled = logits / jnp.where(random, controls.temperature, 1.0)[:, None]
    narrow = (controls.top_k > 0) | (controls.top_p < 1) | (controls.min_p > 0)
    scaled = _when(jnp.any(narrow & random), _narrow, scaled, controls)

    def gumbel(seed, length):
        key = jax.random.fold_in(jax.random.key(seed), length)
        return jax.random.gumbel(key, logits.shape[-1:], jnp.float32)

    noisy = scaled + jax.vmap(gumbel)(controls.seed, lengths)
    return jnp.where(random[:, None], noisy, logits)


def _narrow(logits, controls: Controls):
    """Top-k, then top-p over what is left, then min-p; logits equal to the last one kept are kept too."""
    limit = sample_top(logits, controls.top_k, controls.top_p, controls.min_p)
    return jnp.where(logits >= limit[:, None], logits, -jnp.inf)
