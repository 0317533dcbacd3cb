import math

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from flexjax.bench import quality
from flexjax.engine.request import CompletionOutput

TEXTS = ["The cat sat.", "Ünïcode ✓ text", "a"]


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte: ids do not depend on merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)} | {"<s>": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def uniform(ids):
    return np.zeros((len(ids), 257), np.float32)


def test_a_uniform_model_needs_the_log_of_the_vocabulary(tokenizer):
    ascii_only = ["The cat sat.", "on the mat"]
    assert quality.bits_per_byte(uniform, tokenizer, ascii_only, 100) == pytest.approx(math.log2(257))


def test_a_certain_model_needs_none_and_a_wrong_one_much(tokenizer):
    def certain(ids, sign=1.0):
        logits = np.zeros((len(ids), 257), np.float32)
        logits[np.arange(len(ids) - 1), ids[1:]] = 1000.0 * sign
        return logits

    assert quality.bits_per_byte(certain, tokenizer, TEXTS, 100) == pytest.approx(0.0, abs=1e-9)
    assert quality.bits_per_byte(lambda ids: certain(ids, -1.0), tokenizer, TEXTS, 100) > 1000


def test_bytes_are_counted_and_not_characters_or_tokens(tokenizer):
    """Two bytes a character, one token a byte: the first character is passed with the first token."""
    text = "éééé"
    bits = quality.bits_per_byte(uniform, tokenizer, [text], 100)
    assert bits == pytest.approx(math.log2(257) * 7 / 6)


def test_a_leading_special_token_lets_the_first_byte_be_scored(tokenizer):
    with_bos = Tokenizer.from_str(tokenizer.to_str())
    with_bos.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    seen = []

    def score(ids):
        seen.append(len(ids))
        return uniform(ids)

    assert quality.bits_per_byte(score, with_bos, ["abc"], 100) == pytest.approx(math.log2(257))
    assert seen == [4]


def test_only_the_beginning_of_a_long_document_is_scored(tokenizer):
    seen = []

    def score(ids):
        seen.append(len(ids))
        return uniform(ids)

    assert quality.bits_per_byte(score, tokenizer, ["a" * 50, "b" * 3], 10) == pytest.approx(math.log2(257))
    assert seen == [10, 3]


def test_nothing_to_score_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="None of the 1 documents"):
        quality.bits_per_byte(uniform, tokenizer, ["a"], 10)
    with pytest.raises(ValueError, match="at least 2; got 1|at least 2, .*got 1"):
        quality.bits_per_byte(uniform, tokenizer, ["abc"], 1)


def test_rouge_l_follows_the_longest_common_subsequence():
    """Lin 2004, the example of section 3.2: 'police killed the gunman' against three candidates."""
    reference = "police killed the gunman"
    scores = [quality.rouge_l([text], [reference]) for text in ("police kill the gunman", "the gunman kill police")]
    assert scores == pytest.approx([75.0, 50.0])
    assert quality.rouge_l(["a b", "!", ""], ["a b", "!", ""]) == 100.0
    assert quality.rouge_l(["a", ""], ["b", "c"]) == 0.0


def test_tokens_match_by_place():
    assert quality.matching_tokens([[1, 2, 3]], [[1, 2, 3]]) == 100.0
    assert quality.matching_tokens([[1, 2, 3], [5]], [[1, 9, 3], []]) == 50.0
    assert quality.matching_tokens([[]], [[]]) == 100.0


def test_answers_are_judged_against_the_reference():
    def output(text, ids):
        return CompletionOutput(0, text, ids, "length")

    found = quality.against_reference("int8", [output("a b c d", (1, 2))], [output("a b c e", (1, 3))])
    assert [(q.measure, q.value) for q in found] == [("rouge_l", 75.0), ("matching_tokens", 50.0)]
    with pytest.raises(ValueError, match="got 1 answers and 0 references"):
        quality.against_reference("int8", [output("a", (1,))], [])


def test_the_bars_are_those_of_mlperf():
    assert [quality.mlperf_grade(x) for x in (1.2, 0.999, 0.9989, 0.99, 0.98)] == [
        "≥ 99.9 %",
        "≥ 99.9 %",
        "≥ 99 %",
        "≥ 99 %",
        "< 99 %",
    ]
    assert quality.of_reference(2.0, 1.0, "lower") == 0.5 and quality.of_reference(2.0, 1.0, "higher") == 2.0
