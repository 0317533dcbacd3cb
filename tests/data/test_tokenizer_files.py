"""A tokenizer is opened as published ones are meant: nothing cut, BOS once, broken files named."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from flexjax.data.tokenizer_files import open_tokenizer, refusing_faults, special_tokens
from flexjax.refusal import Refusal

BOS, EOS = 256, 257


def byte_tokenizer() -> Tokenizer:
    """One token a byte, then BOS and EOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    return tokenizer


def framed(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return tokenizer


def saved(directory, tokenizer: Tokenizer | None = None, **fields):
    (tokenizer or byte_tokenizer()).save(str(directory / "tokenizer.json"))
    if fields:
        (directory / "tokenizer_config.json").write_text(json.dumps(fields))
    return directory


LLAMA = dict(tokenizer_class="LlamaTokenizerFast", bos_token="<bos>", eos_token="<eos>")
ADDED = {"__type": "AddedToken", "content": "<bos>", "lstrip": False}


@pytest.mark.parametrize(
    ("has_frame", "fields", "first", "last"),
    [
        (False, LLAMA | dict(add_bos_token=True), BOS, None),
        (False, LLAMA | dict(add_bos_token=True, bos_token=ADDED), BOS, None),
        (True, LLAMA | dict(add_bos_token=True, add_eos_token=False), BOS, None),  # Once, and no EOS any more.
        (False, LLAMA, BOS, None),  # The class's defaults.
        (True, LLAMA | dict(add_bos_token=False), None, None),
        (False, LLAMA | dict(add_eos_token=True), BOS, EOS),
        (False, LLAMA | dict(tokenizer_class="GemmaTokenizer", add_bos_token=True), BOS, None),
        # Of these classes the flags say nothing; tokenizer.json does.
        (True, LLAMA | dict(tokenizer_class="PreTrainedTokenizerFast", add_bos_token=False), BOS, EOS),
        (False, LLAMA | dict(tokenizer_class="Qwen2Tokenizer", add_bos_token=True), None, None),
        (True, dict(add_bos_token=False), BOS, EOS),
        (True, dict(tokenizer_class="LlamaTokenizer"), BOS, EOS),  # The class's own <s> is unknown here.
    ],
)
def test_bos_and_eos_are_added_as_the_class_does(tmp_path, has_frame, fields, first, last):
    tokenizer = framed(byte_tokenizer()) if has_frame else byte_tokenizer()
    ids = open_tokenizer(saved(tmp_path, tokenizer, **fields)).encode("Who").ids
    inner = byte_tokenizer().encode("Who").ids
    assert ids == [*([first] if first else []), *inner, *([last] if last else [])]


def test_a_bos_that_is_asked_for_must_be_known(tmp_path):
    with pytest.raises(Refusal, match=r"tokenizer_config\.json has add_bos_token, .*'<s>'"):
        open_tokenizer(saved(tmp_path, tokenizer_class="LlamaTokenizer", add_bos_token=True))


def test_saved_truncation_and_padding_are_off(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    opened = open_tokenizer(saved(tmp_path, tokenizer))
    assert [len(opened.encode("x" * n).ids) for n in (1, 30)] == [1, 30]


def test_tokens_that_are_named_special_are_special(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    opened = open_tokenizer(saved(tmp_path, tokenizer, pad_token=None))
    assert special_tokens(tmp_path) == {"eos_token": "</s>"}
    assert opened.decode([0, 1, 0]) == "a a" and opened.get_vocab_size() == 2


def test_a_file_or_its_directory_with_a_byte_order_mark(tmp_path):
    file = saved(tmp_path, **LLAMA) / "tokenizer.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert open_tokenizer(file).to_str() == open_tokenizer(tmp_path).to_str()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 9085657\n"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    ("text", "why"),
    [(POINTER, "LFS"), ("", "is empty"), ('{"version": "1.0", "model": {"vo', "is cut off"), ("[1, 2]", "")],
)
def test_broken_files_are_named(tmp_path, name, text, why):
    (saved(tmp_path, **LLAMA) / name).write_text(text)
    with pytest.raises(Refusal, match=rf"{name}.*{why}"):
        open_tokenizer(tmp_path)


def test_json_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nothing"}}')
    with pytest.raises(Refusal, match=r"tokenizer\.json is no tokenizer"):
        open_tokenizer(tmp_path)


PANICS = {  # Each makes the library's Rust panic, which is no Exception: at opening, and at the first text.
    "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    },
}


@pytest.mark.parametrize("part", PANICS)
def test_a_tokenizer_that_makes_the_library_panic_is_named(tmp_path, part):
    file = saved(tmp_path, **LLAMA) / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {part: PANICS[part]}))
    with pytest.raises(Refusal, match=r"tokenizer\.json is no tokenizer"):
        open_tokenizer(tmp_path)


def test_an_interrupt_is_no_fault_of_the_library():
    with pytest.raises(KeyboardInterrupt), refusing_faults("It cannot be read"):
        raise KeyboardInterrupt
