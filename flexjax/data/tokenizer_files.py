"""Opens the tokenizer of a model directory: tokenizer.json, and what the files beside it say of special tokens."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

from flexjax import files
from flexjax.model_files import read_json, refuse_stand_in
from flexjax.refusal import Refusal

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Classes of `transformers` 4 that build the post-processor anew from add_bos_token and add_eos_token → their defaults
# of the two. Every other class leaves the one of tokenizer.json, and these two fields have no effect on it.
_REBUILT = {
    "LlamaTokenizer": (True, False),
    "CodeLlamaTokenizer": (True, False),
    "GemmaTokenizer": (True, False),
    "CohereTokenizer": (True, False),
    "GPTNeoXTokenizer": (False, False),
}
_DEFAULT_NAMES = {  # Of the same classes: named tokens where no file names them.
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>"},
    "CodeLlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>"},
    "GemmaTokenizer": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "CohereTokenizer": {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>"},
    "GPTNeoXTokenizer": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
}


def open_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a model directory or of a tokenizer.json.

    - A saved truncation or padding is off: a prompt is never cut or padded.
    - tokenizer_config.json and special_tokens_map.json beside it, where they exist, are followed: the tokens that they
      name are special, and BOS and EOS are added as `transformers` does for the `tokenizer_class`.

    Raises Refusal, which names the file, where one is missing, empty, a Git LFS pointer, cut off, or no tokenizer.
    """
    path = files.local(path, "A tokenizer")
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise Refusal(f"A tokenizer is a tokenizer.json or a directory that holds one; {file} does not exist.")
    refuse_stand_in(file)
    content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        with refusing_faults(f"{file} is no tokenizer that the `tokenizers` library reads"):
            tokenizer = Tokenizer.from_buffer(content)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            tokenizer.encode("")  # A post-processor that names tokens without defining them shows here.
    except Refusal:
        read_json(file)  # Says more where it is cut off or no JSON at all.
        raise
    config = tokenizer_config(file.parent)
    named = special_tokens(file.parent)
    plain = {t for t in named.values() if tokenizer.token_to_id(t) is not None} - _special(tokenizer)
    tokenizer.add_special_tokens(sorted(plain))  # They keep their ids.
    _frame(tokenizer, config, named, file.parent)
    return tokenizer


@contextlib.contextmanager
def refusing_faults(what: str) -> Iterator[None]:
    """Has a fault of the `tokenizers` library within the block raise Refusal: `what`, and the fault's own words.

    The library's exception types differ from fault to fault, and some are bare. A panic of its Rust is no Exception.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # An interrupt.
        raise Refusal(f"{what}: {error}") from error


def tokenizer_config(directory: str | Path) -> dict[str, Any]:
    """The fields of tokenizer_config.json; none where there is no such file."""
    path = Path(directory) / "tokenizer_config.json"
    return read_json(path) if path.exists() else {}


def special_tokens(directory: str | Path) -> dict[str, str]:
    """Role (`bos_token`, …) → text of the special tokens that a model directory names.

    From tokenizer_config.json, else special_tokens_map.json, else the defaults of the `tokenizer_class`; null names
    none. Either file may give a text or an object with its text as `content`.
    """
    path = Path(directory) / "special_tokens_map.json"
    config = tokenizer_config(directory)
    given = (read_json(path) if path.exists() else {}) | config
    named = _DEFAULT_NAMES.get(_class(config), {}) | {role: given[role] for role in SPECIAL_TOKENS if role in given}
    found = {}
    for role, token in named.items():
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, str | None):
            raise Refusal(f"{role} in {directory} must be a text or an object with `content`; it is {token!r}.")
        if text:
            found[role] = text
    return found


def _class(config: dict[str, Any]) -> str:
    return str(config.get("tokenizer_class") or "").removesuffix("Fast")


def _special(tokenizer: Tokenizer) -> set[str]:
    return {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}


def _frame(tokenizer: Tokenizer, config: dict[str, Any], named: dict[str, str], directory: Path) -> None:
    """Has BOS and EOS added as the class would, in the place of whatever tokenizer.json has added."""
    if _class(config) not in _REBUILT:
        return
    framed: dict[str, dict[str, Any]] = {}
    for end, default in zip(("bos", "eos"), _REBUILT[_class(config)], strict=True):
        asked = config.get(f"add_{end}_token")
        if not (default if asked is None else asked):
            continue
        token = named.get(f"{end}_token")
        known = tokenizer.token_to_id(token) if token else None
        if known is not None:
            framed[end] = {"id": end, "ids": [known], "tokens": [token]}
        elif asked:
            raise Refusal(
                f"{directory / 'tokenizer_config.json'} has add_{end}_token, so its {end}_token must be a token of "
                f"tokenizer.json; it is {token!r}. Name a known one, or set add_{end}_token to false."
            )
        else:  # Nobody asked for it, and the class's own is unknown here: tokenizer.json has the say.
            return
    single = [*(["bos"] if "bos" in framed else []), "$A", *(["eos"] if "eos" in framed else [])]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=single, pair=[*single, "$B"], special_tokens=list(framed.values())
    )
