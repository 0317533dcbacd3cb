"""Learns a byte-level BPE and writes it so that any Hugging Face tool loads it."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from flexjax import files
from flexjax.data.tokenizer_files import open_tokenizer
from flexjax.refusal import Refusal

END_OF_TEXT = "<|endoftext|>"  # Separates documents: begins and ends each one. Always token 0.

# Words, single digits, runs of punctuation, and line ends with the next line's indentation: code is mostly spaces.
_SPLIT = r"[^\s\p{L}\p{N}]?\p{L}+| \p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|(?:[ \t]*\r?\n)+[ \t]*|[ \t]+(?=[ \t]\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with `vocab_size` tokens, `END_OF_TEXT` among them as token 0.

    Every byte is a token of its own, so any text round-trips; `vocab_size` must be at least 257.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 1:
        raise Refusal(
            f"A byte-level vocabulary needs {len(alphabet)} bytes and {END_OF_TEXT}: vocab_size must be at least "
            f"{len(alphabet) + 1}; got {vocab_size}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: str | Path, max_position: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json."""
    directory = files.make_folder(directory, "The folder of the model")
    files.write_text(directory / "tokenizer.json", tokenizer.to_str(pretty=True))
    end = tokenizer.token_to_id(END_OF_TEXT)
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_position,
        },
    )
    _write_json(directory / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})


def load_tokenizer(directory: str | Path) -> Tokenizer:
    return open_tokenizer(Path(directory) / "tokenizer.json")


def _write_json(path: Path, value: dict) -> None:
    files.write_text(path, json.dumps(value, indent=2) + "\n")
