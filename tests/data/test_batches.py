"""Batches are a pure function of (seed, step), and show every token once an epoch."""

import numpy as np
import pytest

from flexjax.data.batches import DataConfig, PackedBatches, tokenize
from flexjax.data.corpus import Document
from flexjax.data.tokenizer import train_tokenizer

CONFIG = DataConfig(batch_size=3, sequence_length=8, seed=5)


def documents() -> list[np.ndarray]:
    lengths = np.random.default_rng(0).integers(5, 60, size=40)
    starts = np.cumsum(lengths) - lengths
    return [np.arange(s, s + n, dtype=np.int32) for s, n in zip(starts, lengths, strict=True)]  # All tokens differ.


def test_any_order_of_asking_gives_the_same_batch():
    forwards, backwards = PackedBatches(documents(), CONFIG), PackedBatches(documents(), CONFIG)
    steps = range(3 * forwards.steps_per_epoch())
    seen = {step: forwards[step] for step in steps}
    for step in reversed(steps):
        np.testing.assert_array_equal(backwards[step], seen[step])


def test_since_starts_anywhere():
    batches = PackedBatches(documents(), CONFIG)
    stream = batches.since(7)
    for step in (7, 8, 9):
        np.testing.assert_array_equal(next(stream), batches[step])


def test_targets_are_the_next_tokens():
    inputs, targets = PackedBatches(documents(), CONFIG)[0]
    assert inputs.shape == targets.shape == (3, 8)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])


def test_an_epoch_shows_no_token_twice_and_almost_all():
    batches = PackedBatches(documents(), CONFIG)
    shown = np.concatenate([batches[step][0].ravel() for step in range(batches.steps_per_epoch())])
    assert len(np.unique(shown)) == len(shown)
    assert len(shown) > batches.tokens - CONFIG.tokens_per_step - 2 * CONFIG.sequence_length


def test_epochs_and_seeds_differ():
    batches = PackedBatches(documents(), CONFIG)
    other = PackedBatches(documents(), DataConfig(batch_size=3, sequence_length=8, seed=6))
    assert (batches[0][0] != batches[batches.steps_per_epoch()][0]).any()
    assert (batches[0][0] != other[0][0]).any()


def test_windows_lengthen_and_tokens_a_step_stay():
    config = DataConfig(batch_size=4, sequence_length=8, lengthen_at=(2, 5))
    assert [config.shape(step) for step in (0, 1, 2, 4, 5, 9)] == [(4, 8), (4, 8), (2, 16), (2, 16), (1, 32), (1, 32)]
    batches = PackedBatches(documents(), config)
    for step in (0, 2, 5):
        inputs, targets = batches[step]
        assert inputs.shape == config.shape(step)
        np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize(
    "wrong", [{"lengthen_at": (3, 3)}, {"lengthen_at": (0,)}, {"batch_size": 6, "lengthen_at": (1, 2)}]
)
def test_lengthening_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="lengthen_at must rise|batch_size must be divisible by 4"):
        DataConfig(**wrong)


def test_each_document_begins_with_the_end_of_text():
    tokenizer = train_tokenizer(["abc abc"], vocab_size=260)
    first, second = tokenize(tokenizer, [Document("a", "abc abc"), Document("b", "")])
    assert first[0] == 0 and tokenizer.decode(first[1:]) == "abc abc"
    assert second.tolist() == [0]


def test_a_corpus_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="the corpus has 20 tokens"):
        PackedBatches([np.arange(20, dtype=np.int32)], CONFIG)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"sequence_length": 0}])
def test_sizes_must_be_positive(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        DataConfig(**wrong)
