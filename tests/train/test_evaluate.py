"""Bits per byte against closed forms: a uniform model, a unigram, and windows that count each token once."""

import gzip

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from flexjax.data.corpus import Document
from flexjax.data.tokenizer import train_tokenizer
from flexjax.train import evaluate
from models.transformer import build

DOCUMENTS = [Document("a", "the quick brown fox " * 9), Document("b", "jumps over"), Document("c", "é" * 40)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([d.text for d in DOCUMENTS], vocab_size=280)


def token_count(tokenizer) -> int:
    return sum(len(tokenizer.encode(d.text).ids) for d in DOCUMENTS)


def byte_count() -> int:
    return sum(len(d.text.encode()) for d in DOCUMENTS)


@pytest.mark.parametrize("context", [1, 2, 7, 8, 1000])
def test_a_uniform_model_pays_log_v_a_token(tokenizer, context):
    def uniform(tokens):
        return np.full((tokens.shape[0], context), np.log(280))

    score = evaluate.score(uniform, tokenizer, DOCUMENTS, context, batch_size=3)
    assert score.tokens == token_count(tokenizer)
    assert score.bytes == byte_count()
    assert score.bits_per_byte == pytest.approx(np.log2(280) * token_count(tokenizer) / byte_count())
    assert score.nats_per_token == pytest.approx(np.log(280))


def test_each_token_is_counted_once_and_after_half_a_context(tokenizer):
    context, seen = 8, []
    documents = evaluate.tokenize(tokenizer, DOCUMENTS)
    for windows, counted in evaluate._batches(documents, context, batch_size=3):
        assert windows.shape == (3, context + 1)
        for window, mask in zip(windows, counted, strict=True):
            if mask.any() and window[0] != 0:
                assert np.argmax(mask) >= context // 2 - 1
            seen += window[1:][mask].tolist()
    assert seen == [int(t) for d in documents for t in d[1:]]


def test_a_model_scores_the_same_whatever_the_batch(tokenizer):
    config = tiny_run.MODEL
    model = build(config.__class__(**{**config.__dict__, "vocab_size": 280}), dtype=jnp.float32)
    nats_of = evaluate.token_nats(model)
    one, many = (evaluate.score(nats_of, tokenizer, DOCUMENTS, 16, batch_size=n) for n in (1, 4))
    assert one.nats == pytest.approx(many.nats, rel=1e-5)
    assert one.nats_per_token == pytest.approx(np.log(280), rel=0.1)  # An untrained model knows nothing.


def test_unigram_by_hand(tokenizer):
    text = "ab"
    a, b = tokenizer.encode(text).ids
    # Training "aab": END a a b, one more of each of 280 → p(a) = 3/284, p(b) = 2/284.
    bits = evaluate.unigram_bits_per_byte(
        tokenizer, [Document("x", "a"), Document("y", "a"), Document("z", "b")], [Document("h", text)], 280
    )
    assert a != b
    assert bits == pytest.approx(-(np.log2(3 / 286) + np.log2(2 / 286)) / 2)


def test_compressors():
    text = np.random.default_rng(0).integers(97, 123, 5000, dtype=np.uint8).tobytes().decode()
    documents = [Document("noise", text)]
    assert evaluate.gzip_bits_per_byte(documents) == 8 * len(gzip.compress(text.encode(), 9)) / len(text)
    # Random letters: no less than their entropy, and little more.
    assert np.log2(26) < evaluate.xz_bits_per_byte(documents) < 1.1 * np.log2(26)
    # The same text again costs next to nothing.
    assert evaluate.xz_bits_per_byte(documents, after=documents) < 0.1
