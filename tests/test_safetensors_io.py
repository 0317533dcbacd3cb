"""Checkpoints against the published reader and writer, and what is said about broken ones."""

import dataclasses
import errno
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from flexjax.refusal import Refusal
from flexjax.safetensors_io import INDEX, SINGLE, SafetensorsFile, TensorToWrite, open_checkpoint, write_checkpoint

RNG = np.random.default_rng(0)
TENSORS = {
    "a": RNG.normal(size=(3, 5)).astype(np.float32),
    "b": RNG.normal(size=(7,)).astype(ml_dtypes.bfloat16),
    "c": RNG.normal(size=(2, 2, 2)).astype(np.float16),
}


def write(directory, tensors, max_shard_bytes=10**9):
    lazily = {name: TensorToWrite(value.dtype, value.shape, lambda v=value: v) for name, value in tensors.items()}
    write_checkpoint(directory, lazily, max_shard_bytes)


def read(directory) -> dict[str, np.ndarray]:
    values = {}
    for name, file in open_checkpoint(directory).items():
        with file.tensor(name) as view:
            values[name] = view.copy()
    return values


def assert_same(got, expected):
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value)


def test_the_published_reader_reads_what_is_written(tmp_path):
    write(tmp_path, TENSORS)
    assert_same(safetensors.numpy.load_file(tmp_path / SINGLE), TENSORS)
    with safetensors.safe_open(tmp_path / SINGLE, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_the_published_writer_writes_is_read(tmp_path):
    safetensors.numpy.save_file(TENSORS, tmp_path / SINGLE)
    assert_same(read(tmp_path), TENSORS)


def test_shards_and_a_single_file_replace_each_other(tmp_path):
    write(tmp_path, TENSORS, max_shard_bytes=62)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        INDEX,
    ]
    assert json.loads((tmp_path / INDEX).read_text())["metadata"]["total_size"] == 60 + 14 + 16
    assert_same(read(tmp_path), TENSORS)
    write(tmp_path, TENSORS)
    assert [p.name for p in tmp_path.iterdir()] == [SINGLE]
    assert_same(read(tmp_path), TENSORS)


def test_views_are_read_only(tmp_path):
    write(tmp_path, TENSORS)
    with SafetensorsFile(tmp_path / SINGLE).tensor("a") as view, pytest.raises(ValueError, match="read-only"):
        view[0] = 0


@pytest.mark.parametrize("keep", [0, 5, 40, -1], ids=["empty", "in the length", "in the header", "in the data"])
def test_truncated(tmp_path, keep):
    write(tmp_path, TENSORS)
    data = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(data[:keep])
    with pytest.raises(ValueError, match="model.safetensors is (truncated|empty).*again"):
        open_checkpoint(tmp_path)


def test_too_long(tmp_path):
    write(tmp_path, TENSORS)
    with (tmp_path / SINGLE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="is too long"):
        open_checkpoint(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 4242\n"


@pytest.mark.parametrize("name", [SINGLE, INDEX, "model-00002-of-00002.safetensors"])
def test_a_pointer_in_the_place_of_a_file_is_named(name, tmp_path):
    write(tmp_path, TENSORS, max_shard_bytes=62)
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(Refusal, match=f"{name} is a Git LFS pointer: run `git lfs pull`"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("", "is empty"),
        ('{"weight_map": {"a"', "is cut off"),
        ("{}", "is no index"),
        ('{"weight_map": []}', "is no index"),
    ],
)
def test_an_index_that_is_none(index, message, tmp_path):
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(Refusal, match=f"{INDEX} {message}"):
        open_checkpoint(tmp_path)


def with_header(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{nonsense", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}', "dtype F4; read are BOOL"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "offsets 0..4 span 4 bytes"),
        (b'{"a": {"dtype": "F32"}}', "'a' of .* must have a dtype, a shape and two data_offsets"),
        (b'{"a": [1]}', "must have a dtype, a shape and two data_offsets"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', "two data_offsets"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}', "two data_offsets.*in whole numbers"),
        (b'{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}', "two data_offsets.*in whole numbers"),
        (b'{"a": {"dtype": ["F32"], "shape": [0], "data_offsets": [0, 0]}}', "read are BOOL"),
        (b'{"a": {"shape": [0], "data_offsets": [0, 0]}}', "dtype None; read are BOOL"),
    ],
)
def test_unsound_headers(tmp_path, header, message):
    (tmp_path / SINGLE).write_bytes(with_header(header))
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path)


def test_missing_shard(tmp_path):
    write(tmp_path, TENSORS, max_shard_bytes=62)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"2 shards and 1 are missing: model-00002-of-00002.safetensors\. Copy"):
        open_checkpoint(tmp_path)


def test_an_index_that_names_a_tensor_in_the_wrong_shard(tmp_path):
    write(tmp_path, TENSORS, max_shard_bytes=62)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["c"] = "model-00001-of-00002.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="'c' is in model-00001-of-00002.safetensors, which does not hold it"):
        open_checkpoint(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(ValueError, match="holds neither model.safetensors nor"):
        open_checkpoint(tmp_path)


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    write(tmp_path, TENSORS)

    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, {"a": TensorToWrite(np.dtype(np.float32), (1,), fail)}, 10**9)
    assert_same(read(tmp_path), TENSORS)


@pytest.mark.parametrize("shard", [10**9, 40], ids=["a single file", "shards"])
def test_a_save_that_fails_at_its_last_shard_leaves_all_of_the_one_before(tmp_path, shard):
    """Shards of two saves are never mixed: all are written before the first takes its name."""

    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path, TENSORS, shard)
    names = sorted(path.name for path in tmp_path.iterdir())
    new = {name: TensorToWrite(value.dtype, value.shape, lambda v=value: v + v) for name, value in TENSORS.items()}
    new["c"] = dataclasses.replace(new["c"], values=fail)
    with pytest.raises(OSError, match=r"No space left on device: .*model-00002-of-00002.safetensors'"):
        write_checkpoint(tmp_path, new, 40)
    assert_same(read(tmp_path), TENSORS)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
