"""A cache declared by kind: states that rows advance once, windows that hold no more than they see, exact bytes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Attends, Counting, CountingConfig, Counts

from flexjax.engine import Engine, EngineConfig, Request, SamplingParams
from flexjax.engine.device.placement import Placement
from flexjax.engine.device.score import Scorer
from flexjax.engine.limits import page_pools
from flexjax.nn import layout_of

CONFIG = EngineConfig(
    dtype="float32", max_num_seqs=3, max_num_batched_tokens=16, page_size=4, max_model_len=96, decode_steps=4
)
HYBRID = CountingConfig((Counts(), Attends(2, 8), Counts(3), Attends(1, 16, window=6), Attends(4, 8)))
WINDOWED = CountingConfig((Attends(2, 8, window=6), Counts(), Attends(1, 16, window=6)))


def answers(engine: Engine, prompts: dict[str, int], **params) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {name: [] for name in prompts}
    sampling = SamplingParams(temperature=0, ignore_eos=True, **({"max_tokens": 20} | params))
    for name, length in prompts.items():
        listener = lambda event, name=name: found[name].extend(event.token_ids)
        engine.submit(Request(name, tuple(range(length)), sampling, listener=listener))
    while engine.step():
        pass
    return found


PROMPTS = {"a": 1, "b": 7, "c": 33, "d": 5, "e": 17}


@pytest.mark.parametrize("decode_steps", [1, 4])
@pytest.mark.parametrize("num_pages", [None, 18])
def test_every_row_is_counted_once_whatever_runs_beside_it(decode_steps, num_pages):
    """Sequences end within a dispatch of several steps, are preempted, and take slots that others have left."""
    engine = Engine(Counting(HYBRID), None, dataclasses.replace(CONFIG, decode_steps=decode_steps, num_pages=num_pages))
    found = {}
    for max_tokens in (1, 6, 20):
        found = answers(engine, PROMPTS, max_tokens=max_tokens)
        for name, length in PROMPTS.items():
            assert found[name] == [(length + i) % 64 for i in range(max_tokens)], name
    assert engine.pool.num_used == 0
    assert (engine.stats.preemptions > 0) == (num_pages is not None)


def test_a_row_that_does_not_advance_leaves_state_and_last_token():
    """One sequence makes one token of a dispatch of four, and another all: its slot stands where it ended."""
    engine = Engine(Counting(HYBRID), None, CONFIG)
    found: list[int] = []
    for name, most in (("long", 9), ("short", 6)):
        params = SamplingParams(temperature=0, max_tokens=most, ignore_eos=True)
        engine.submit(Request(name, (1, 2, 3), params, listener=lambda event: found.extend(event.token_ids)))
    while engine.step():
        pass
    counts = np.asarray(engine.runner.cache[0][0])[:, 0]
    # Three of the prompt and all but the last of the answer.
    assert sorted(counts[:-1].tolist(), reverse=True)[:2] == [3 + 8, 3 + 5]
    last = np.asarray(engine.runner.memory.last_tokens)
    assert sorted(last[:-1].tolist(), reverse=True)[:2] == [3 + 8, 3 + 5]


@pytest.mark.parametrize("config", [HYBRID, WINDOWED], ids=["hybrid", "windowed"])
@pytest.mark.parametrize("rows_per_step", [1, 5, 16])
def test_layers_see_the_mean_of_their_windows(config, rows_per_step):
    """In the pages of a whole context, and in an engine that writes over those behind the window."""
    model = Counting(config)
    tokens = list(range(40))
    means = np.zeros(40)
    for layer in config.layers:
        if isinstance(layer, Attends):
            first = [max(0, p + 1 - (layer.window or 99)) for p in range(40)]
            means += [(a + 1 + p + 1) / 2 for p, a in enumerate(first)]
    hidden = hidden_states(model, tokens, rows_per_step)
    np.testing.assert_allclose(hidden[:, 1], means, rtol=1e-6)
    np.testing.assert_array_equal(hidden[:, 0], np.arange(1, 41))


def hidden_states(model: Counting, tokens: list[int], rows_per_step: int) -> np.ndarray:
    """Of every row, by a scorer of a model whose logits they are."""

    class Bare(Counting):
        def logits(self, hidden: jax.Array) -> jax.Array:
            return hidden

    scorer = Scorer(
        Bare(model.config), max_model_len=96, page_size=4, cache_dtype=jnp.float32, rows_per_step=rows_per_step,
        placement=Placement(None),
    )  # fmt: skip
    return scorer(tokens)


def test_a_windowed_sequence_holds_its_window_and_what_it_sees_is_right():
    """The engine's own pages are read back while a long answer is made."""
    engine = Engine(Counting(WINDOWED), None, CONFIG)
    (pool,) = engine.pool.pools
    # Six tokens that the first of sixteen rows sees, itself among them, and fifteen more: 21 lie in up to 6 pages.
    assert pool.most == 6 and pool.capacity == 3 * 6
    most = 0
    params = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)
    tokens: list[int] = []
    engine.submit(Request("a", tuple(range(40)), params, listener=lambda event: tokens.extend(event.token_ids)))
    while engine.step():
        most = max(most, engine.pool.num_used)
    assert tokens == [(40 + i) % 64 for i in range(50)]
    assert most == 6  # Of the 23 that 90 tokens would take.
    values = np.asarray(engine.runner.cache[0][0])[1:, :, 0, 1, 0]  # Position + 1 of what each row of a page holds.
    assert set(range(90 - 6 + 1, 90)) <= set(values.reshape(-1).astype(int).tolist())


def test_a_pool_holds_more_tokens_where_layers_have_a_window():
    """Of the same bytes: all-sliding, and one sliding layer of two."""
    whole, half, sliding = (
        CountingConfig(layers) for layers in (
            (Attends(), Attends()), (Attends(), Attends(window=8)), (Attends(window=8), Attends(window=8)),
        )
    )  # fmt: skip
    page = 2 * 4 * 2 * 8 * 4  # Two layers, four tokens, keys and values of eight floats.
    config = dataclasses.replace(CONFIG, max_num_seqs=15, max_model_len=256, cache_gib=128 * page / 2**30)
    held = []
    for model in map(Counting, (whole, half, sliding)):
        pools = page_pools(config, model, 256, Placement(None))
        held.append(min(pool.capacity // pool.pages_for(256) for pool in pools.pools) * 256)
    assert held == [1 * 256, 3 * 256, 15 * 256]


def test_slots_are_charged_beside_pages():
    config = CountingConfig((Counts(100), Attends(1, 8)))
    slot, page = 100 * 4 + 4, 4 * 2 * 8 * 4
    budget = (3 + 1) * slot + 10 * page
    exact = dataclasses.replace(CONFIG, cache_gib=budget / 2**30)
    (pool,) = page_pools(exact, Counting(config), 96, Placement(None)).pools
    assert pool.capacity + 1 == 10
    engine = Engine(Counting(config), None, exact)
    assert engine.runner.cache_bytes == budget
    less = dataclasses.replace(exact, cache_gib=(budget - 9 * page) / 2**30)
    with pytest.raises(ValueError, match=r"the states of 4 sequences, take 2,\d+ bytes .*\(1,616 of them .* no room"):
        page_pools(less, Counting(config), 96, Placement(None))


def test_a_model_without_pages_is_served():
    engine = Engine(Counting(CountingConfig((Counts(), Counts(2)))), None, CONFIG)
    assert answers(engine, PROMPTS)["c"] == [(33 + i) % 64 for i in range(20)]
    assert engine.pool.capacity == 0


def test_leaves_of_a_layout_are_of_their_kind():
    layout = layout_of(Counting(HYBRID))
    assert layout.windows == (None, 6)
    leaves = [leaf for kept in layout.paged((7, 5), 4, 3, jnp.bfloat16) for leaf in kept]
    assert [leaf.shape for leaf in leaves] == [
        (3, 1), (3,), (7, 4, 2, 2, 8), (3, 3), (3,), (5, 4, 1, 2, 16), (7, 4, 4, 2, 8),
    ]  # fmt: skip
    kinds = ["float32", "int32", "bfloat16", "float32", "int32", "bfloat16", "bfloat16"]
    assert [jnp.dtype(leaf.dtype).name for leaf in leaves] == kinds
    assert all(len(leaf.axes) == len(leaf.shape) for leaf in leaves)
