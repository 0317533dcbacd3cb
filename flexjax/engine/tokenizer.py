"""The tokenizer of a model directory, and the token ids that end a text."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from flexjax.refusal import Refusal


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with its end-of-sequence ids."""

    tokenizer: Tokenizer
    eos_ids: frozenset[int]

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text).ids)

    def decode(self, token_ids) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)


def load_vocabulary(directory: str | Path, *, vocab_size: int) -> Vocabulary | None:
    """The vocabulary of a model directory; None when it has no tokenizer.json.

    Refusal when the tokenizer knows ids that the weights have no row for.
    """
    directory = Path(directory)
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(path))
    known = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if known > vocab_size:
        raise Refusal(
            f"Every token needs a row in the embedding: {path} has ids up to {known - 1}, the weights have "
            f"{vocab_size} rows. The tokenizer and the weights are of different models; take both from one directory."
        )
    return Vocabulary(tokenizer, _eos_ids(directory))


def _eos_ids(directory: Path) -> frozenset[int]:
    """From generation_config.json, else config.json; either may hold one id or several."""
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        fields: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        eos = fields.get("eos_token_id")
        if eos is not None:
            return frozenset(eos if isinstance(eos, list) else [eos])
    return frozenset()
