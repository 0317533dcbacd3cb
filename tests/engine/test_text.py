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
