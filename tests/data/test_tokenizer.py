"""The byte-level BPE: lossless on anything, and laid out as Hugging Face tools expect."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from flexjax.data.tokenizer import END_OF_TEXT, load_tokenizer, save_tokenizer, train_tokenizer

TEXT = (
    'def gcd(a, b):\n    """Return the greatest common divisor."""\n'
    "    while b:\n        a, b = b, a % b\n    return a\n"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT] * 3, vocab_size=300)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_every_byte_round_trips(tokenizer):
    # Every byte that UTF-8 can hold occurs in one of these characters.
    text = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 61), *range(0xE000, 0x110000, 4093)]))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_size_and_special_token(tokenizer):
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.token_to_id(END_OF_TEXT) == 0
    assert tokenizer.encode(END_OF_TEXT).ids == [0]


def test_a_line_end_takes_the_next_indentation_along(tokenizer):
    tokens = [tokenizer.decode([i]) for i in tokenizer.encode(TEXT).ids]
    assert "\n    " in tokens
    assert len(tokens) < len(TEXT) / 1.5


def test_same_text_same_tokenizer(tokenizer):
    assert train_tokenizer([TEXT] * 3, vocab_size=300).to_str() == tokenizer.to_str()


def test_saved_is_loaded(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path, max_position=64)
    assert load_tokenizer(tmp_path).to_str() == tokenizer.to_str()
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 0
    published = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert published["model_max_length"] == 64
    assert published["bos_token"] == published["eos_token"] == END_OF_TEXT


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="at least 257; got 200"):
        train_tokenizer([TEXT], vocab_size=200)


def test_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.json does not exist"):
        load_tokenizer(tmp_path)
