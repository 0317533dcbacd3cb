"""Files that are whole or absent, and paths that are of this machine."""

import contextlib
import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from flexjax.refusal import Refusal

PARTIAL = ".partial"  # Ends the name of a file that is not whole yet.

# Two letters or more, since one is a drive; one slash too, since pathlib makes "gs:/bucket" of "gs://bucket".
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


@contextlib.contextmanager
def replacing(path: Path, mode: Literal["w", "wb"] = "w", newline: str | None = None) -> Iterator[IO[Any]]:
    """A file to write that takes the place of `path` when the block ends well, all at once; text is UTF-8.

    It is written beside `path` and brought to the disk before it is renamed. Where the block raises, or the process is
    killed, `path` stays as it was. An OSError, such as of a full disk, names `path`.
    """
    partial = path.with_name(path.name + PARTIAL)
    with naming(path):
        try:
            with partial.open(mode, newline=newline, encoding=None if mode == "wb" else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):  # The first error is the one to tell.
                partial.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Makes `text` the content of `path`, or leaves the file as it was."""
    with replacing(path) as file:
        file.write(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Makes `content` that of `path`, or leaves the file as it was."""
    with replacing(path, "wb") as file:
        file.write(content)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table, or leaves the file as it was."""
    with replacing(path, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def set_aside(path: Path) -> Path:
    """Renames what cannot be read to `<name>.unreadable`, with a number where that is taken; returns the new path."""
    number = 1
    aside = path.with_name(f"{path.name}.unreadable")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.unreadable-{number}")
    path.rename(aside)
    return aside


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Has an OSError that names no file, as one of writing does, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def scheme(path: str | os.PathLike[str]) -> str | None:
    """The scheme of a URL, such as "gs" of gs://bucket/folder; None for a path of this machine."""
    found = _SCHEME.match(os.fspath(path))
    return found[1] if found else None


def local(path: str | os.PathLike[str], what: str) -> Path:
    """`path`, of `what` ("The workdir"). Refusal where it is a URL, of which pathlib would make a local folder."""
    if scheme(path) is not None:
        raise Refusal(
            f"{what} must be a path of this machine; got {os.fspath(path)}, and flexjax reads and writes no URL. Copy "
            "it to a local folder (gcloud storage cp -r, aws s3 cp --recursive, …), or mount the bucket, and give that "
            "path."
        )
    return Path(path)


def make_folder(path: str | os.PathLike[str], what: str) -> Path:
    """Makes the folder `path` where it is missing. Refusal where that fails, or where nothing can be written in it."""
    folder = local(path, what)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{what} {folder} cannot be made: {error.strerror} ({error.filename}). Give another.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refusal(f"{what} {folder} must be a folder that can be written in; it is not. Give another.")
    return folder
