"""Text comes out whole: no half characters, nothing of a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from flexjax.engine.text import TextStream


@pytest.fixture(scope="module")
def bytes_tokenizer() -> Tokenizer:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@given(text=st.text(min_size=1, max_size=30), stops=st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_stream_equals_text_cut_at_the_first_stop(bytes_tokenizer, text, stops):
    stream, pieces = TextStream(bytes_tokenizer, stops), []
    for token in bytes_tokenizer.encode(text).ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.flush())
    got = "".join(pieces)
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
    # The first stop to be complete ends the text; of several complete at once, the one that begins first.
    ends = [text.find(s) + len(s) for s in stops if s in text]
    expected = text
    if ends:
        seen = text[: min(ends)]
        expected = seen[: min(seen.find(s) for s in stops if s in seen)]
    assert got == expected
    assert stream.stopped == bool(ends)


def test_possible_beginning_of_a_stop_is_held_back(bytes_tokenizer):
    stream = TextStream(bytes_tokenizer, ["END"])
    out = [stream.push(t) for t in bytes_tokenizer.encode("xENy").ids]
    assert out == ["x", "", "", "ENy"]


def test_without_tokenizer_there_is_no_text():
    assert TextStream(None).push(3) == ""


def test_stop_strings_pass_until_they_may_stop(bytes_tokenizer):
    stream, ids = TextStream(bytes_tokenizer, ["b"]), bytes_tokenizer.encode("abcb").ids
    assert [stream.push(t, may_stop=i > 1) for i, t in enumerate(ids)] == ["a", "b", "c", ""]
    assert stream.stopped


@pytest.fixture(scope="module")
def llama_tokenizer() -> Tokenizer:
    """As Llama 2's: words with a leading space, single bytes for what has no word."""
    vocabulary = {"<unk>": 0, "▁hello": 1, "▁world": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def test_the_space_after_the_prompt_is_kept(llama_tokenizer):
    assert TextStream(llama_tokenizer, after=[1]).push(2) == " world"


@given(st.lists(st.integers(1, 258), max_size=40))
def test_bytes_that_are_no_text_do_not_raise(llama_tokenizer, ids):
    stream = TextStream(llama_tokenizer)
    for token in [3 + b for b in (0xC8, 0xA9, 0xF8, 0x35, 0xBD, 0xBF, 0x64)] + [1, *ids]:
        assert isinstance(stream.push(token), str)
