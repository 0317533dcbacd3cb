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


@pytest.fixture(scope="module")
def chat_tokenizer(bytes_tokenizer) -> Tokenizer:
    tokenizer = Tokenizer.from_str(bytes_tokenizer.to_str())
    tokenizer.add_special_tokens(["<|im_end|>", "<|eot|>"])
    return tokenizer


def stopped_text(tokenizer, text, stop, min_tokens=0) -> tuple[str, bool]:
    """As the engine reads a stream: a stop may come once more than `min_tokens` are there."""
    stream, pieces = TextStream(tokenizer, stop), []
    for i, token in enumerate(tokenizer.encode(text).ids):
        pieces.append(stream.push(token, may_stop=i + 1 > min_tokens))
        if stream.stopped:
            break
    return "".join(pieces) + stream.flush(), stream.stopped


@pytest.mark.parametrize(
    ("text", "stop", "min_tokens", "expected"),
    [
        ("abENDc", ["END"], 3, ("ab", True)),  # It straddles min_tokens.
        ("abENDc", ["END"], 4, ("ab", True)),
        ("abENDc", ["END"], 5, ("abENDc", False)),  # All of it is there before a stop may come.
        ("ENDabENDc", ["END"], 4, ("ENDab", True)),
        ("aaab", ["aa"], 2, ("a", True)),
        ("xbcdey", ["bcdef", "cd"], 4, ("xbcdey", False)),  # One that ended in time, within one that may yet come.
        ("ab<|im_end|>c", ["<|im_end|>"], 0, ("ab", True)),  # A special token, which is no part of the text.
        ("ab<|im_end|>c", ["<|im_end|>"], 3, ("abc", False)),
        ("ab<|im_end|>c", ["x", "c"], 0, ("ab", True)),
        ("ab<|eot|>c<|im_end|>d", ["<|im_end|>", "<|eot|>"], 0, ("ab", True)),
        ("ab\n<|im_end|>\nuser", ["\n<|im_end|>\nu"], 0, ("ab", True)),  # Named within a longer one.
        ("ab\n<|im_end|>\nx", ["\n<|im_end|>\nu"], 0, ("ab\n\nx", False)),
        ("aEN<|im_end|>Db", ["END", "<|im_end|>x"], 0, ("a", True)),  # The text has no END, token or not.
        ("a<|eot|>b", ["<|im_end|>"], 0, ("ab", False)),
    ],
)
def test_stop_strings_and_special_tokens_and_min_tokens(chat_tokenizer, text, stop, min_tokens, expected):
    assert stopped_text(chat_tokenizer, text, stop, min_tokens) == expected


def test_a_special_token_that_is_spelled_out_stops_too(chat_tokenizer):
    stream = TextStream(chat_tokenizer, ["<|im_end|>"])
    spelled = [chat_tokenizer.token_to_id(c) for c in "a<|im_end|>"]
    assert "".join(map(stream.push, spelled)) == "a" and stream.stopped


@given(text=st.text("ab", max_size=12), stops=st.lists(st.text("ab", min_size=1, max_size=3), max_size=2))
@pytest.mark.parametrize("min_tokens", [0, 2, 5])
def test_a_stop_counts_when_its_last_token_may_stop(chat_tokenizer, text, stops, min_tokens):
    ends = [(i + len(s), i) for s in stops for i in range(len(text)) if text.startswith(s, i)]
    ends = [(end, i) for end, i in ends if end > min_tokens]
    cut = min(ends, default=(0, len(text)))[1]
    assert stopped_text(chat_tokenizer, text, stops, min_tokens) == (text[:cut], bool(ends))


def test_a_character_that_is_never_completed_is_told_at_the_end(bytes_tokenizer):
    stream = TextStream(bytes_tokenizer)
    assert [stream.push(t) for t in bytes_tokenizer.encode("a€").ids[:-1]] == ["a", "", ""]
    assert stream.flush() == "\ufffd"
