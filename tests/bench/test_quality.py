import itertools
import math

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from flexjax.bench import quality
from flexjax.bench.quality import Window, windows

TEXTS = ["The cat sat on the mat.", "Ünïcode ✓ text 👩‍👩‍👧‍👦 of many bytes", "a", ""]


def byte_level(merges=(), trim_offsets=True) -> Tokenizer:
    """One token a byte, but for the merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def word_level() -> Tokenizer:
    """A token a word; blanks are dropped, as is what stands at the ends."""
    tokenizer = Tokenizer(models.WordLevel(vocab={"?": 0, "the": 1, "cat": 2}, unk_token="?"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@pytest.mark.parametrize("start", [(), (7,), (8, 7)])
@pytest.mark.parametrize("context", [2, 5])
@pytest.mark.parametrize("continuation", [1, 3, 1000])
def test_every_token_past_the_first_context_is_scored_once_with_what_stands_before_it(start, context, continuation):
    tokenizer = byte_level()
    own = context - len(start)
    for text in TEXTS:
        ids = tuple(tokenizer.encode(text).ids)
        found = windows(tokenizer, [text], context=context, continuation=continuation, min_bytes=10**9, start=start)
        assert tuple(itertools.chain(*(w.continuation for w in found))) == ids[own:]
        at = own
        for window in found:
            assert window.context == (*start, *ids[at - own : at]) and len(window.context) == context
            assert 1 <= len(window.continuation) <= continuation
            at += len(window.continuation)


@pytest.mark.parametrize(
    "tokenizer",
    [byte_level(), byte_level(trim_offsets=False), byte_level([("t", "h"), ("Ġ", "Ġ"), ("Ã", "¼")]), word_level()],
    ids=["bytes", "untrimmed", "merged", "words"],
)
@pytest.mark.parametrize("continuation", [1, 2, 7])
def test_bytes_add_up_to_those_of_the_text(tokenizer, continuation):
    texts = [*TEXTS, "  the  cat\n\n  ", "ü✓ü✓  ✓", "the cat the"]
    for text in texts:
        found = windows(tokenizer, [text], context=1, continuation=continuation, min_bytes=10**9, start=(3,))
        # All text is scored behind a token that stands for none; a text without a token has nothing to score.
        assert sum(w.n_bytes for w in found) == (len(text.encode()) if tokenizer.encode(text).ids else 0)
    # The first character is passed with its first token, though three tokens make it.
    (window,) = windows(byte_level(), ["✓ab"], context=1, continuation=9)
    assert len(window.continuation) == 4 and window.n_bytes == 2


def test_documents_are_taken_in_turn_until_the_bytes_are_reached():
    texts = ["abcdefgh", "ij", "klmnop"]
    cut = lambda min_bytes: windows(byte_level(), texts, context=2, continuation=3, min_bytes=min_bytes)
    # The second has no more than its context.
    spell = lambda ids: byte_level().decode(list(ids))
    assert [spell(w.continuation) for w in cut(10**6)] == ["cde", "mno", "fgh", "p"]
    assert [w.n_bytes for w in cut(4)] == [3, 3] and [w.n_bytes for w in cut(7)] == [3, 3, 3]
    assert cut(0) == ()


def test_a_window_without_room_is_refused():
    for context, continuation, start in ((0, 1, ()), (1, 0, ()), (1, 1, (5, 6))):
        with pytest.raises(ValueError, match=rf"room for the {len(start)} .*got {context} and {continuation}"):
            windows(byte_level(), ["abc"], context=context, continuation=continuation, start=start)


def window(n_tokens: int, n_bytes: int) -> Window:
    return Window((1,), tuple(range(n_tokens)), n_bytes)


def test_a_uniform_model_needs_the_log_of_the_vocabulary():
    cut = [window(4, 4), window(3, 3)]  # One token a byte.
    value, interval = quality.bits_per_byte([[-math.log(257)] * len(w.continuation) for w in cut], cut)
    assert value == pytest.approx(math.log2(257))
    assert interval.low == pytest.approx(value) == interval.high
    value, interval = quality.bits_per_byte([[-math.log(2)] * 4], [window(4, 8)])
    assert value == pytest.approx(0.5) and interval is None


def test_a_pair_s_interval_is_far_narrower_than_those_of_the_sides():
    """Texts differ much in how hard they are; the second side takes 1 to 3 % more bits of each."""
    cut = [window(1, 10)] * 40
    hard = [5.0 + (7 * i) % 31 for i in range(40)]
    first = [[-math.log(2) * x] for x in hard]
    second = [[-math.log(2) * x * (1.01 + 0.01 * (i % 3))] for i, x in enumerate(hard)]
    (a, spread), (b, _) = quality.bits_per_byte(first, cut), quality.bits_per_byte(second, cut)
    ratio, narrow = quality.kept(quality.bits(second), quality.bits(first), "lower")
    assert ratio == pytest.approx(a / b) and 0.97 < narrow.low < ratio < narrow.high < 0.99
    assert 20 * (narrow.high - narrow.low) / ratio < (spread.high - spread.low) / a
    assert quality.kept([3.0, 1.0], [1.0, 1.0], "higher")[0] == 2.0
    assert quality.kept([3.0, 1.0], [0.0, 0.0], "higher") == (None, None)


def test_what_is_no_log_probability_is_told():
    cut = [window(2, 2), window(1, 1)]
    assert quality.fault([[-0.1, 0.0], [1e-3]], cut) == ""
    assert quality.fault([[-0.1, 0.0]], cut) == "log-probabilities of 1 windows came back, of 2"
    assert "1 of 2 windows" in quality.fault([[-0.1], [-0.2]], cut)
    for wrong in (-math.inf, math.nan, 0.7):
        assert f"such as {wrong}" in quality.fault([[-0.1, wrong], [0.0]], cut)


def test_rouge_l_follows_the_longest_common_subsequence():
    """Lin 2004, the example of section 3.2: 'police killed the gunman' against three candidates."""
    reference = "police killed the gunman"
    scores = [quality.rouge_l(text, reference) for text in ("police kill the gunman", "the gunman kill police")]
    assert scores == pytest.approx([75.0, 50.0])
    assert [quality.rouge_l(text, text) for text in ("a b", "!", "")] == [100.0] * 3
    assert [quality.rouge_l("a", "b"), quality.rouge_l("", "c"), quality.rouge_l("!", "?")] == [0.0] * 3


def test_tokens_match_by_place():
    assert quality.matching_tokens([1, 2, 3], [1, 2, 3]) == (3, 3)
    assert quality.matching_tokens([1, 2, 3], [1, 9, 3]) == (2, 3)
    assert quality.matching_tokens([5], []) == (0, 1)


def test_the_bars_are_those_of_mlperf():
    assert [quality.mlperf_grade(x) for x in (1.2, 0.999, 0.9989, 0.99, 0.98)] == [
        "≥ 99.9 %",
        "≥ 99.9 %",
        "≥ 99 %",
        "≥ 99 %",
        "< 99 %",
    ]
    assert quality.of_reference(2.0, 1.0, "lower") == 0.5 and quality.of_reference(2.0, 1.0, "higher") == 2.0
