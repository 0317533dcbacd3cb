"""A file is whole or as it was; a URL never becomes a folder."""

import errno
import os
from pathlib import Path

import pytest

from flexjax import files
from flexjax.refusal import Refusal


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_written_file_is_all_that_is_left(tmp_path):
    files.write_text(tmp_path / "a", "é\n")
    files.write_bytes(tmp_path / "a", b"new")
    files.write_csv(tmp_path / "b", ("x", "y"), [(1, "two, three")])
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "b").read_bytes() == b'x,y\r\n1,"two, three"\r\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_full_disk_leaves_the_file_as_it_was_and_is_told_by_its_name(tmp_path, monkeypatch):
    files.write_text(tmp_path / "config.json", "before")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=r"No space left on device: .*config\.json'"):
        files.write_text(tmp_path / "config.json", "after")
    assert (tmp_path / "config.json").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_writer_that_stops_half_way_leaves_the_file_as_it_was(tmp_path, error):
    files.write_text(tmp_path / "a", "before")
    with pytest.raises(error), files.replacing(tmp_path / "a") as file:
        file.write("half")
        raise error
    assert (tmp_path / "a").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    (tmp_path / f"a{files.PARTIAL}").write_text("half of a much longer file")
    files.write_text(tmp_path / "a", "whole")
    assert (tmp_path / "a").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1


def test_nothing_that_is_set_aside_is_overwritten(tmp_path):
    for text in ("one", "two"):
        (tmp_path / "a").write_text(text)
        files.set_aside(tmp_path / "a")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.unreadable": "one", "a.unreadable-2": "two"}


@pytest.mark.parametrize(
    ("path", "scheme"),
    [
        ("gs://bucket/a", "gs"),
        ("S3://bucket", "S3"),
        ("file:///a", "file"),
        ("abfs+ssl://a", "abfs+ssl"),
        (Path("gs://bucket/a"), "gs"),
        ("runs/gs", None),
        ("/a/gs://b", None),
        ("c:/runs", None),
        ("a:b", None),
    ],
)
def test_a_url_is_told_from_a_path(path, scheme):
    assert files.scheme(path) == scheme


def test_a_url_is_refused_and_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match=r"The workdir must be a path of this machine; got gs://b/x, .* Copy"):
        files.make_folder("gs://b/x", "The workdir")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Refusal, match=r"The workdir .*file.* cannot be made: (File exists|Not a directory)"):
            files.make_folder(path, "The workdir")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(Refusal, match="must be a folder that can be written in"):
        files.make_folder(tmp_path / "read-only", "The workdir")
