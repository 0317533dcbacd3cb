"""JSON files of model directories, whole and not."""

import json

import pytest

from flexjax.model_files import read_json
from flexjax.refusal import Refusal

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 4242\n"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_an_object_is_read(mark, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(mark + '{"a": "é\u2028", "b": null}'.encode())
    assert read_json(path) == {"a": "é\u2028", "b": None}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (POINTER, "is a Git LFS pointer: run `git lfs pull`"),
        (b"/annex/objects/MD5E-s4242--0123.json\n", "is a git-annex pointer"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xef\xbb\xbf", "is cut off after 3 bytes"),
        (b'{"a": {"b": 1', "is cut off after 13 bytes"),
        (b'{"a": "b', "is cut off after 8 bytes"),
        (b'{"a": 1,}', "is not valid JSON: .*column 9"),
        (b"\xff\xfe{\x00", r"is not UTF-8 text \(byte 0\)"),
        (b"[1]", "must hold a JSON object"),
    ],
)
def test_what_is_no_object_is_refused_by_file_and_kind(data, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(Refusal, match=f"config.json {message}"):
        read_json(path)


def test_every_cut_of_an_object_is_named_as_one(tmp_path):
    whole = json.dumps({"text": 'a "quoted" word', "list": [1, -2.5e-3, None, True, "é"], "inner": {"x": "y"}})
    for length in range(1, len(whole)):
        (tmp_path / "config.json").write_text(whole[:length])
        with pytest.raises(Refusal, match="config.json is cut off"):
            read_json(tmp_path / "config.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(Refusal, match="config.json does not exist"):
        read_json(tmp_path / "config.json")
