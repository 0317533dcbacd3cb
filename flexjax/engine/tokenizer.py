"""The vocabulary of a model directory: text to token ids and back, and the ids that end a text."""

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from flexjax.data import open_tokenizer, refusing_faults, special_tokens
from flexjax.engine.chat import ChatTemplates, load_chat_templates
from flexjax.model_files import read_json
from flexjax.refusal import Refusal


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with its end-of-sequence ids and chat templates.

    The tokenizer may know added tokens that the weights have no row for, and the weights may have rows that no token
    belongs to: such tokens are never made or read, such rows stand for no text.
    """

    tokenizer: Tokenizer
    eos_ids: frozenset[int]
    vocab_size: int | None = None  # Rows of the embedding; None does not check.
    chat: ChatTemplates | None = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The ids of a prompt, with the BOS or EOS that the tokenizer adds.

        As in `transformers` and vLLM, BOS stands twice where the text begins with its name and the tokenizer adds it.
        Raises Refusal for text that is no Unicode or needs a token without a row in the embedding.
        """
        with refusing_faults(f"The tokenizer cannot read the text {text[:60]!r}"):
            ids = tuple(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        strangers = [i for i in ids if self.vocab_size is not None and i >= self.vocab_size]
        if strangers:
            raise Refusal(
                f"Every token of a prompt needs a row in the embedding, which has {self.vocab_size}: the token "
                f"{self.tokenizer.id_to_token(strangers[0])!r} has the id {strangers[0]}. Leave it out of the text."
            )
        return ids

    def decode(self, token_ids: Iterable[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)


def load_vocabulary(directory: str | Path, *, vocab_size: int) -> Vocabulary | None:
    """The vocabulary of a model directory; None when it has no tokenizer.json.

    Refusal for files that are no tokenizer, and when the tokenizer's own vocabulary, apart from tokens added to it
    later, has ids that the weights have no row for.
    """
    directory = Path(directory)
    path = directory / "tokenizer.json"
    if not path.exists():
        return None
    tokenizer = open_tokenizer(directory)
    own = set(tokenizer.get_vocab(with_added_tokens=False).values()) - tokenizer.get_added_tokens_decoder().keys()
    known = max(own, default=-1) + 1
    if known > vocab_size:
        raise Refusal(
            f"Every token needs a row in the embedding: {path} has ids up to {known - 1}, the weights have "
            f"{vocab_size} rows. The tokenizer and the weights are of different models; take both from one directory."
        )
    eos_ids = _eos_ids(directory, tokenizer)
    without = sorted(i for i in eos_ids if not 0 <= i < vocab_size)
    if without:  # They can never be sampled.
        logging.warning("%s: no row of the embedding belongs to the end-of-sequence ids %s.", directory, without)
    return Vocabulary(tokenizer, eos_ids - set(without), vocab_size, load_chat_templates(directory))


def _eos_ids(directory: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """From generation_config.json, else config.json, each with one id or several; else the tokenizer's eos_token."""
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        fields = read_json(path) if path.exists() else {}
        for eos in (fields.get("eos_token_id"), _text_config(fields).get("eos_token_id")):
            if eos is not None:
                ids = eos if isinstance(eos, list) else [eos]
                if not all(type(i) is int for i in ids):
                    raise Refusal(f"eos_token_id in {path} must be a whole number or a list of them; it is {eos!r}.")
                return frozenset(ids)
    token = special_tokens(directory).get("eos_token")
    last = tokenizer.token_to_id(token) if token else None
    return frozenset() if last is None else frozenset([last])


def _text_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Where a model that also sees keeps the fields of its text side."""
    nested = fields.get("text_config")
    return nested if isinstance(nested, dict) else {}
