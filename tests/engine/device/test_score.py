"""Scoring from several threads, with a bounded number of caches."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from flexjax.engine import Engine, EngineConfig

CONFIG = EngineConfig(dtype="float32", max_num_seqs=2, max_num_batched_tokens=16, page_size=4, num_pages=40)
TEXTS = [tuple(np.random.default_rng(i).integers(0, 96, 30 + i).tolist()) for i in range(6)]


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    return Engine(tiny_model, None, CONFIG)


def test_two_threads_score_what_one_does(engine):
    """A step takes its cache over: two at a time would take one cache twice."""
    expected = {rows: [engine.score(text, rows) for text in TEXTS] for rows in (4, 8)}
    begin = threading.Barrier(2)

    def score(rows: int) -> list[np.ndarray]:
        begin.wait()
        return [engine.score(text, rows) for text in TEXTS]

    with ThreadPoolExecutor(2) as pool:
        for rows in ((4, 4), (4, 8)):
            for got, size in zip(pool.map(score, rows), rows, strict=True):
                for one, other in zip(got, expected[size], strict=True):
                    np.testing.assert_array_equal(one, other)


def test_the_caches_of_old_sizes_are_given_back(engine):
    made = []
    make = engine._scorers._make
    engine._scorers._make = lambda rows: made.append(make(rows)) or made[-1]
    for rows in (3, 5, 6, 5, 7):
        engine.score(TEXTS[0], rows)
    assert [scorer.rows_per_step for scorer in made] == [3, 5, 6, 7]  # 5 was still there.
    held = [scorer.rows_per_step for scorer in made if jax.tree.leaves(scorer._cache)]
    assert held == [5, 7]


def test_a_text_that_fails_leaves_the_next_one_a_cache(engine, monkeypatch):
    expected = engine.score(TEXTS[0], 4)
    scorer = engine._scorers._kept[4]
    step = scorer._step

    def interrupted(*args):
        step(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(scorer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.score(TEXTS[0], 4)
    monkeypatch.undo()
    np.testing.assert_array_equal(engine.score(TEXTS[0], 4), expected)


def test_steps_of_more_rows_than_a_text_can_have_are_as_long_as_the_context(engine):
    expected = engine.score(TEXTS[0], engine.max_model_len)
    np.testing.assert_array_equal(engine.score(TEXTS[0], 10**9), expected)
    assert max(engine._scorers._kept) == engine.max_model_len
