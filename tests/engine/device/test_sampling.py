"""The device's choice of tokens against plain numpy, and its independence of the rest of the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.engine.device.sampling import MAX_STOP_IDS, Controls, Memory, _argmax, count_fed, empty_memory, sample
from flexjax.engine.request import MAX_LOGPROBS

V = 40  # Vocabulary.


def controls(batch: int, **fields) -> Controls:
    """Greedy unless a field says otherwise; a field is one value for all or one for each."""
    defaults = {
        "seed": (0, jnp.uint32),
        "temperature": (0.0, jnp.float32),
        "top_k": (0, jnp.int32),
        "top_p": (1.0, jnp.float32),
        "min_p": (0.0, jnp.float32),
        "repetition": (1.0, jnp.float32),
        "presence": (0.0, jnp.float32),
        "frequency": (0.0, jnp.float32),
        "min_length": (0, jnp.int32),
        "prompt_lengths": (0, jnp.int32),
        "wants_logprobs": (False, jnp.bool_),
        "forced": (-1, jnp.int32),
    }
    columns = {
        n: jnp.broadcast_to(jnp.asarray(fields.get(n, value), dtype), (batch,))
        for n, (value, dtype) in defaults.items()
    }
    stop_ids = np.full((batch, MAX_STOP_IDS), -1, np.int32)
    stop_ids[:, : len(fields.get("stop_ids", ()))] = fields.get("stop_ids", ())
    return Controls(**columns, stop_ids=jnp.asarray(stop_ids))


@functools.cache
def compiled():
    return jax.jit(sample)


def run(logits, c: Controls, memory: Memory | None = None, lengths=None):
    batch = logits.shape[0]
    memory = memory or empty_memory(batch + 1, logits.shape[1])
    lengths = jnp.full((batch,), 5, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
    return compiled()(jnp.asarray(logits, jnp.float32), c, memory, jnp.arange(batch, dtype=jnp.int32), lengths)


def draws(logits, count=4000, **fields):
    """Tokens drawn from one row of logits with different seeds."""
    rows = np.broadcast_to(logits, (count, logits.size))
    return np.asarray(run(rows, controls(count, seed=np.arange(count), **fields)).tokens)


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, V).astype(np.float32)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def reference_filter(logits, top_k=0, top_p=1.0, min_p=0.0):
    """Sort-based, as in the literature: top-k, then the smallest set of at least top_p mass, then min-p."""
    order = np.argsort(-logits)
    keep = np.zeros(logits.size, bool)
    keep[order[: top_k or logits.size]] = True
    probs = softmax(np.where(keep, logits, -np.inf))
    if top_p < 1:
        mass = np.cumsum(probs[order])
        keep &= np.isin(np.arange(logits.size), order[: np.searchsorted(mass, top_p) + 1])
    return keep & (softmax(logits) >= min_p * softmax(logits).max())


@pytest.mark.parametrize(
    "rules",
    [
        dict(top_k=1),
        dict(top_k=7),
        dict(top_k=V + 5),
        dict(top_p=0.3),
        dict(top_p=0.9),
        dict(min_p=0.1),
        dict(top_k=12, top_p=0.8, min_p=0.05),
    ],
)
def test_filters_keep_what_a_sort_keeps(logits, rules):
    got = draws(logits, temperature=1.5, **rules)
    keep = reference_filter(logits / 1.5, **rules)
    assert set(got) <= set(np.flatnonzero(keep))
    # Everything kept with a fair chance is drawn: at 4,000 draws a share of 0.5 % is missed with p < 1e-8.
    probs = softmax(np.where(keep, logits / 1.5, -np.inf))
    assert set(np.flatnonzero(probs > 0.005)) <= set(got)


def test_draws_follow_the_distribution(logits):
    counts = np.bincount(draws(logits, count=20_000, temperature=0.8), minlength=V)
    probs = softmax(logits / 0.8)
    tested = probs * 20_000 > 5
    chi2 = np.sum((counts - probs * 20_000)[tested] ** 2 / (probs * 20_000)[tested])
    assert chi2 < 90  # 40 degrees of freedom at most: p < 1e-5.


def test_greedy_takes_the_largest(logits):
    assert int(run(logits[None], controls(1)).tokens[0]) == int(np.argmax(logits))


@pytest.mark.parametrize("size", [40, 96, 384])  # Without blocks, and with blocks of 32 and 128.
def test_greedy_takes_the_first_of_equals(size):
    logits = np.random.default_rng(size).integers(-3, 4, (64, size)).astype(np.float32)
    logits[0] = -np.inf
    np.testing.assert_array_equal(_argmax(jnp.asarray(logits)), np.argmax(logits, axis=1))


def test_a_row_does_not_depend_on_its_neighbours(logits):
    rng = np.random.default_rng(1)
    many = np.concatenate([logits[None], rng.normal(size=(7, V)).astype(np.float32)])
    rules = dict(temperature=[1.0] + [0.0, 0.7] * 3 + [2.0], top_k=[5] + [0, 3] * 3 + [1], seed=np.arange(8))
    alone = run(logits[None], controls(1, temperature=1.0, top_k=5, seed=0))
    together = run(many, controls(8, **rules))
    assert int(alone.tokens[0]) == int(together.tokens[0])


def test_same_seed_and_position_same_token_other_position_other_draws(logits):
    first = run(np.tile(logits, (64, 1)), controls(64, temperature=2.0, seed=3), lengths=np.arange(64))
    again = run(np.tile(logits, (64, 1)), controls(64, temperature=2.0, seed=3), lengths=np.arange(64))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert len(set(np.asarray(first.tokens).tolist())) > 5


def test_penalties_follow_their_definitions(logits):
    memory = empty_memory(2, V)
    memory = Memory(
        memory.last_tokens,
        memory.in_prompt.at[0, jnp.array([1, 2])].set(True),
        memory.output_counts.at[0, jnp.array([2, 3])].set(jnp.array([1, 4], jnp.int32)),
    )
    expected = logits.copy()
    for token in (1, 2, 3):  # CTRL, arXiv:1909.05858, section 4.1, as vLLM reads it for negative logits.
        expected[token] = expected[token] / 1.3 if expected[token] > 0 else expected[token] * 1.3
    expected[2] -= 0.5 * 1 + 0.25
    expected[3] -= 0.5 * 4 + 0.25
    order = []  # The whole ranking shows, token by token, when each winner is held back in turn.
    for _ in range(4):
        c = controls(1, repetition=1.3, frequency=0.5, presence=0.25, stop_ids=order, min_length=99)
        order.append(int(run(logits[None], c, memory).tokens[0]))
    assert order == np.argsort(-expected)[:4].tolist()


def test_counting_feeds_prompt_and_output_apart_and_forgets_the_slots_last_tenant():
    memory = empty_memory(4, V)
    memory = Memory(memory.last_tokens, memory.in_prompt.at[2, 9].set(True), memory.output_counts.at[2, 9].set(3))
    c = controls(3, presence=1.0, prompt_lengths=[2, 3, 9])
    # Slot 2 begins with prompt 5, 6 and recomputed output 6; slot 0 goes on with output 8; one padding row.
    after = count_fed(
        memory,
        c,
        jnp.array([2, 0, 3], jnp.int32),
        jnp.array([5, 6, 6, 8, 30], jnp.int32),
        jnp.array([0, 1, 2, 7, 0], jnp.int32),
        jnp.array([0, 3, 4, 4], jnp.int32),
        jnp.ones(3, bool),
    )
    assert np.flatnonzero(after.in_prompt[2]).tolist() == [5, 6]
    assert {int(t): int(after.output_counts[2, t]) for t in np.flatnonzero(after.output_counts[2])} == {6: 1}
    assert {int(t): int(after.output_counts[0, t]) for t in np.flatnonzero(after.output_counts[0])} == {8: 1}
    assert not after.in_prompt[0].any() and not after.output_counts[1].any() and not after.output_counts[3].any()


def test_a_repeated_row_is_not_counted_again():
    c = controls(2, frequency=1.0)
    arguments = (jnp.array([0, 1], jnp.int32), jnp.array([5, 6], jnp.int32), jnp.array([3, 3], jnp.int32))
    after = count_fed(empty_memory(3, V), c, *arguments, jnp.array([0, 1, 2], jnp.int32), jnp.array([True, False]))
    assert int(after.output_counts[0, 5]) == 1 and not after.output_counts[1].any()


def test_logprobs_are_the_models_own(logits):
    got = run(logits[None], controls(1, temperature=0.7, top_k=3, wants_logprobs=True))
    expected = np.log(softmax(logits.astype(np.float64)))
    token = int(got.tokens[0])
    assert int(got.logprob_ids[0, 0]) == token
    np.testing.assert_allclose(got.logprobs[0, 0], expected[token], atol=1e-5)
    best = np.argsort(-expected)[:MAX_LOGPROBS]
    np.testing.assert_array_equal(got.logprob_ids[0, 1:], best)
    np.testing.assert_allclose(got.logprobs[0, 1:], expected[best], atol=1e-5)
