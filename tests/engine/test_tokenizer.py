"""Text to ids and back where tokenizer and weights are of different sizes; the ids that end a text."""

import json

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from flexjax.engine.text import TextStream
from flexjax.engine.tokenizer import load_vocabulary
from flexjax.refusal import Refusal

WORDS = 8


@pytest.fixture
def directory(tmp_path):
    """Eight words, then two special tokens: <end> and <image>."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>", "<image>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(directory, **files):
    for name, fields in files.items():
        (directory / f"{name}.json").write_text(json.dumps(fields))


def test_a_prompt_that_needs_a_token_without_a_row_is_refused_by_its_name(directory):
    vocabulary = load_vocabulary(directory, vocab_size=WORDS + 1)
    assert vocabulary.encode("w3 <end> w4") == (3, WORDS, 4)
    with pytest.raises(Refusal, match=r"'<image>' has the id 9"):
        vocabulary.encode("w3 <image>")


def test_a_vocabulary_larger_than_the_weights_is_refused(directory):
    with pytest.raises(Refusal, match="ids up to 7, the weights have 7 rows"):
        load_vocabulary(directory, vocab_size=WORDS - 1)


def test_rows_without_a_token_stand_for_no_text(directory):
    vocabulary = load_vocabulary(directory, vocab_size=64)
    ids = [1, 50, 2, 63]
    stream = TextStream(vocabulary.tokenizer)
    assert "".join(map(stream.push, ids)) + stream.flush() == vocabulary.decode(ids) == "w1 w2"


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({}, set()),
        ({"generation_config": {"eos_token_id": [3, 8]}, "config": {"eos_token_id": 4}}, {3, 8}),
        ({"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": 4}}, {4}),
        ({"config": {"text_config": {"eos_token_id": [4, 5]}}}, {4, 5}),
        ({"config": {"eos_token_id": None}, "tokenizer_config": {"eos_token": {"content": "<end>"}}}, {8}),
        ({"generation_config": {"eos_token_id": [3, 9, -1]}}, {3}),  # The weights have nine rows.
    ],
)
def test_what_ends_a_text(directory, files, ids):
    write(directory, **files)
    assert load_vocabulary(directory, vocab_size=WORDS + 1).eos_ids == ids


def test_an_end_that_is_no_id_is_named(directory):
    write(directory, generation_config={"eos_token_id": "<end>"})
    with pytest.raises(Refusal, match=r"generation_config\.json must be a whole number"):
        load_vocabulary(directory, vocab_size=WORDS)


def test_a_broken_generation_config_is_named(directory):
    (directory / "generation_config.json").write_text('{"eos_token_id": [1, 1')
    with pytest.raises(Refusal, match=r"generation_config\.json is cut off"):
        load_vocabulary(directory, vocab_size=WORDS)


def test_text_that_the_tokenizer_cannot_read_is_refused(directory):
    with pytest.raises(Refusal, match="cannot read the text"):
        load_vocabulary(directory, vocab_size=64).encode("half a pair: \ud800")


def test_text_that_makes_the_library_panic_is_refused(directory):
    vocabulary = load_vocabulary(directory, vocab_size=64)
    # Backtracking without an end, which the library's regular expressions stop with a panic.
    vocabulary.tokenizer.normalizer = normalizers.Replace(Regex("(a+)+$"), "w")  # type: ignore[assignment]
    with pytest.raises(Refusal, match="cannot read the text"):
        vocabulary.encode("a" * 28 + "b")
