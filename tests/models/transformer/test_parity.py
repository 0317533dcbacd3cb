"""Logits and greedy text of every architecture against the published implementation, in float32."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flexjax.model import CausalLM, RaggedBatch, zeros
from flexjax.nn import layout_of
from models import transformer

GOLDEN = sorted(path.parent for path in (Path(__file__).parent / "golden").glob("*/golden.npz"))
TOLERANCE = 2e-4  # Absolute; logits have a spread of 1 to 3, and float32 sums differ in order.
PAGE_SIZE = 4
NUM_PAGES = 40


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda folder: folder.name)
def golden(request):
    """A model, and its prompts with their logits and continuations."""
    arrays = np.load(request.param / "golden.npz")
    cases = [tuple(arrays[f"{kind}_{i}"] for kind in ("prompt", "logits", "greedy")) for i in range(3)]
    return transformer.load(request.param, dtype=jnp.float32), cases


@nnx.jit
def dense_logits(model, tokens):
    return model.logits(model.dense(tokens)[0])


@functools.partial(nnx.jit, donate_argnums=2)
def ragged_logits(model, batch, cache):
    hidden, cache = model(batch, cache)
    return model.logits(hidden), cache


def step(model, cache, rows: list[np.ndarray], done: list[int], num_rows: int):
    """One ragged step: the new tokens `rows` of sequences that hold `done` tokens; logits a sequence, and the cache."""
    longest = max(len(tokens) for tokens in rows)
    tokens = np.zeros(num_rows, np.int32)
    positions = np.zeros(num_rows, np.int32)
    starts = np.cumsum([0, *(len(r) for r in rows)]).astype(np.int32)
    for start, new, before in zip(starts, rows, done, strict=False):
        tokens[start : start + len(new)] = new
        positions[start : start + len(new)] = before + np.arange(len(new))
    pages_each = (NUM_PAGES - 1) // len(rows)
    batch = RaggedBatch(
        tokens=jnp.asarray(tokens),
        positions=jnp.asarray(positions),
        query_starts=jnp.asarray(starts),
        kv_lengths=jnp.asarray([before + len(new) for before, new in zip(done, rows, strict=True)], jnp.int32),
        # Pages of the sequences interleave, so that a wrong table would show.
        page_table=jnp.asarray(1 + np.arange(len(rows))[:, None] + len(rows) * np.arange(pages_each), jnp.int32),
        state_slots=jnp.zeros(len(rows), jnp.int32),
        max_query_len=1 if longest == 1 else num_rows,
    )
    logits, cache = ragged_logits(model, batch, cache)
    return np.split(np.asarray(logits), starts[1:])[:-1], cache


def padded(prompts: list[np.ndarray]) -> jax.Array:
    longest = max(len(p) for p in prompts)
    return jnp.asarray(np.stack([np.pad(p, (0, longest - len(p))) for p in prompts]))


def test_there_are_golden_files():
    assert len(GOLDEN) == 9


def test_dense_logits(golden):
    model, cases = golden
    assert isinstance(model, CausalLM)
    logits = dense_logits(model, padded([prompt for prompt, _, _ in cases]))
    for got, (prompt, expected, _) in zip(np.asarray(logits), cases, strict=True):
        np.testing.assert_allclose(got[: len(prompt)], expected, rtol=0, atol=TOLERANCE)


def test_dense_greedy_text(golden):
    """Teacher-forced: every token of the published continuation is the argmax after those before it."""
    model, cases = golden
    logits = dense_logits(model, padded([np.concatenate([prompt, greedy]) for prompt, _, greedy in cases]))
    for got, (prompt, _, greedy) in zip(np.asarray(logits), cases, strict=True):
        made = got.argmax(-1)[len(prompt) - 1 : len(prompt) + len(greedy) - 1]
        np.testing.assert_array_equal(made, greedy)


def test_ragged_prefill_in_chunks_and_decode(golden):
    """The first seven tokens of each prompt in one step, the rest in the next, then token by token."""
    model, cases = golden
    cache = zeros(layout_of(model).paged(NUM_PAGES, PAGE_SIZE, 1, jnp.float32))
    prompts = [prompt for prompt, _, _ in cases[1:]]
    first, cache = step(model, cache, [p[:7] for p in prompts], [0, 0], 64)
    second, cache = step(model, cache, [p[7:] for p in prompts], [7, 7], 64)
    for (_, expected, _), head, tail in zip(cases[1:], first, second, strict=True):
        np.testing.assert_allclose(np.concatenate([head, tail]), expected, rtol=0, atol=TOLERANCE)

    last, done = second, [len(p) for p in prompts]
    for position in range(16):
        chosen = [rows[-1:].argmax(-1).astype(np.int32) for rows in last]
        for token, (_, _, greedy) in zip(chosen, cases[1:], strict=True):
            assert token[0] == greedy[position]
        last, cache = step(model, cache, chosen, done, 2)
        done = [n + 1 for n in done]


def test_token_by_token_logits_equal_the_published_prefill(golden):
    model, cases = golden
    prompt, expected, _ = cases[2]
    cache = zeros(layout_of(model).paged(NUM_PAGES, PAGE_SIZE, 1, jnp.float32))
    for position, token in enumerate(prompt[:24]):
        (logits, _), cache = step(model, cache, [prompt[position : position + 1], token[None]], [position] * 2, 2)
        np.testing.assert_allclose(logits[0], expected[position], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["mistral", "qwen2", "gemma2", "gemma3"])
def test_the_windows_of_the_golden_models_matter(name):
    """Without its windows a model is off by far more than the tolerance, so parity does check them."""
    folder = Path(__file__).parent / "golden" / name
    model = transformer.load(folder, dtype=jnp.float32)
    arrays = np.load(folder / "golden.npz")
    open_layers = tuple(dataclasses.replace(layer, window=None) for layer in model.config.layers)
    model.config = dataclasses.replace(model.config, layers=open_layers)
    off = np.abs(np.asarray(dense_logits(model, arrays["prompt_2"][None])[0]) - arrays["logits_2"]).max()
    assert off > 100 * TOLERANCE
