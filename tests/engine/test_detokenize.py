"""Text that comes in pieces is the text decoded at once, and a token costs the same however many came before."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from flexjax.engine.detokenize import Detokenizer

SPECIAL, ADDED = "<|im_end|>", "<tool>"
BYTES = 7  # Id of the first byte token of byte fallback.


def byte_level() -> Tokenizer:
    """Also with tokens that end within a character, as published ones have."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for word in (" hello", "é", "x😀", " 😀"):
        spelled = split.pre_tokenize_str(word)[0][0]
        for end in range(2, len(spelled) + 1):
            vocabulary.setdefault(spelled[:end], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    return tokenizer


def byte_fallback(*strip: decoders.Decoder) -> Tokenizer:
    """As Llama 2's and, without the strip, Gemma's: words with a leading space, bytes for what has no word."""
    words = {"<unk>": 0, "▁hello": 1, "▁": 2, "a": 3, "é": 4, "▁▁": 5, "b": 6}
    vocabulary = words | {f"<0x{b:02X}>": BYTES + b for b in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"▁a": 0, "▁": 1, "b": 2, "▁▁c": 3}, unk_token="b"))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def end_of_word() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b</w>": 1, "c": 2, "d</w>": 3}, merges=[]))
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer


def plain() -> Tokenizer:
    return Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([SPECIAL])
    tokenizer.add_tokens([ADDED])
    return tokenizer


TOKENIZERS = {
    "byte_level": with_added(byte_level()),
    "byte_fallback": with_added(byte_fallback(decoders.Strip(" ", 1, 0))),
    "no_strip": with_added(byte_fallback()),
    "metaspace": with_added(metaspace()),
    "end_of_word": with_added(end_of_word()),
    "plain": with_added(plain()),
}


def streamed(tokenizer: Tokenizer, ids, after=()) -> str:
    text = Detokenizer(tokenizer, after)
    return "".join(map(text.push, ids)) + text.flush()


def token_lists(name: str) -> st.SearchStrategy[list[int]]:
    """Of any tokens, rows without a token among them; byte fallback has its wrong bytes behind a word."""
    size = TOKENIZERS[name].get_vocab_size() + 2
    if name not in ("byte_fallback", "no_strip"):
        return st.lists(st.integers(0, size - 1), max_size=40)
    others = st.sampled_from([*range(BYTES), *range(BYTES + 256, size)])
    whole = st.sampled_from("😀 €\né\ufffd").map(lambda c: [BYTES + b for b in c.encode()])
    first = st.integers(0x80, 0xBF)
    wrong = st.tuples(first, st.lists(st.integers(0, 255), max_size=5), st.sampled_from([1, 3]))
    lost = wrong.map(lambda parts: [1, *(BYTES + b for b in (parts[0], *parts[1])), parts[2]])
    parts = st.lists(st.one_of(others.map(lambda i: [i]), whole, lost), max_size=20)
    return parts.map(lambda lists: list(itertools.chain.from_iterable(lists)))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(data=st.data())
def test_pieces_make_the_text_decoded_at_once(name, data):
    tokenizer, ids = TOKENIZERS[name], data.draw(token_lists(name))
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(data=st.data())
def test_pieces_go_on_after_the_prompt(name, data):
    tokenizer, before, ids = TOKENIZERS[name], data.draw(token_lists(name)), data.draw(token_lists(name))
    prompt, whole = tokenizer.decode(before), tokenizer.decode(before + ids)
    if not prompt.endswith("\ufffd") and whole.startswith(prompt):  # Else the two share a character.
        assert streamed(tokenizer, ids, before) == whole.removeprefix(prompt)


def test_a_prompt_of_special_tokens_keeps_the_space_of_the_word_before_them():
    tokenizer = TOKENIZERS["byte_fallback"]
    special = tokenizer.token_to_id(SPECIAL)
    assert streamed(tokenizer, [1], after=[3] + [special] * 20) == " hello"
    assert streamed(tokenizer, [1], after=[special]) == "hello"


def test_a_prompt_that_ends_in_byte_tokens_is_no_broken_run():
    tokenizer = TOKENIZERS["byte_fallback"]
    euros = [BYTES + b for b in ("€" * 5).encode()]
    assert streamed(tokenizer, euros[:3], after=euros) == "€"


def test_whole_characters_of_byte_tokens_come_out_at_once_and_stay():
    text = Detokenizer(TOKENIZERS["byte_fallback"])
    pieces = [text.push(BYTES + b) for b in b"\n" + "é".encode() + b"\xff\xff"]
    assert pieces == ["\n", "", "é", "\ufffd", "\ufffd"]
    assert text.push(1) == " hello"


class Counting:
    """A tokenizer that counts the ids it decodes."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self.decoded = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def decode(self, ids, **options):
        self.decoded += len(ids)
        return self._tokenizer.decode(ids, **options)


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("kind", ["special", "wrong", "text"])
def test_a_token_costs_the_same_however_many_came_before(name, kind):
    """A window that grew made 4,000 tokens without a whole character cost 0.6 s."""
    counting = Counting(TOKENIZERS[name])
    wrong = counting.token_to_id("ÿ") if name == "byte_level" else BYTES + 0xFF
    token = {"special": counting.token_to_id(SPECIAL), "wrong": wrong, "text": 3}[kind]
    text = Detokenizer(counting)
    for _ in range(1000):
        text.push(token)
    assert counting.decoded <= 1000 * (0 if kind == "special" else 10)
