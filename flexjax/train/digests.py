"""Digests of the files of a folder, by which a flipped bit or a cut file is found."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flexjax import files

NAME = "sha256sums.txt"  # In the form of the command sha256sum, which checks it: sha256sum -c sha256sums.txt


def write(folder: Path) -> None:
    """Writes the digest of every file under `folder` into it; it appears whole, or not at all."""
    files.write_text(folder / NAME, _text(_digests(folder)))


def fault(folder: Path) -> str | None:
    """What is wrong with `folder`, in words; empty where every file is as it was, None where it has no digests.

    Reads every file once.
    """
    try:
        written = (folder / NAME).read_text(errors="replace")
        found = _digests(folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    if written == _text(found):
        return ""
    wanted = {line[66:]: line[:64] for line in written.splitlines()}
    for what, names in (
        ("is missing", wanted.keys() - found.keys()),
        (f"is not in {NAME}", found.keys() - wanted.keys()),
        (f"has changed since it was written, says {NAME}", {n for n in wanted if wanted[n] != found.get(n)}),
    ):
        if names:
            first = min(names)
            size = f" ({(folder / first).stat().st_size} bytes)" if first in found else ""
            more = f", and {len(names) - 1} more" if len(names) > 1 else ""
            return f"{first!r}{size} {what}{more}"
    return f"{NAME} itself has changed since it was written"


def _text(digests: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def _digests(folder: Path) -> dict[str, str]:
    """Path within the folder → SHA-256, sorted. Hidden files are of file systems and browsers, not of the state."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name != NAME and not p.name.startswith(".")]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashlib lets other threads run.
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name), names), strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
