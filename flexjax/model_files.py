"""The files of a model directory: what they are when they are not what their names say."""

import json
from pathlib import Path
from typing import Any

from flexjax.refusal import Refusal

# First bytes of a file that stands in the place of another → what it is, and the way out.
STAND_INS = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer: run `git lfs pull` in its folder",
    b"version https://hawser.github.com/spec/": "a Git LFS pointer: run `git lfs pull` in its folder",
    b"/annex/objects/": "a git-annex pointer: run `git annex get` in its folder",
    b"<!doctype html": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
}


def refuse_stand_in(path: Path) -> None:
    """Refusal where `path` is missing, no file, empty, or a pointer or page in the place of the file itself."""
    if not path.is_file():
        raise Refusal(f"{path} does not exist or is no file. Copy or download the whole model directory.")
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if not start:
        raise Refusal(f"{path} is empty. Copy or download it again.")
    for first, what in STAND_INS.items():
        if start.startswith(first):
            raise Refusal(f"{path} is {what}.")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model directory, in UTF-8 with or without a byte order mark.

    Raises Refusal, which names the file, where it is missing, empty, a pointer or page in the place of the file, cut
    off, no text, no JSON or no object.
    """
    refuse_stand_in(path)
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} is not UTF-8 text (byte {error.start}). Copy or download it again.") from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        # Past the fault of a cut file comes at most the start of one word, number or string.
        if not set(text[error.pos :]) & set('{}[]":,') or error.msg.startswith("Unterminated"):
            raise Refusal(f"{path} is cut off after {len(data)} bytes. Copy or download it again.") from error
        raise Refusal(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise Refusal(f"{path} must hold a JSON object; it holds {str(value)[:80]!r}.")
    return value
