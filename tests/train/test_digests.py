"""Every flipped bit, cut file and missing file is found."""

import subprocess

import pytest

from flexjax.train import digests


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "d").write_bytes(bytes(range(256)))
    (tmp_path / "commit.txt").write_text("done")
    (tmp_path / "empty").touch()
    digests.write(tmp_path)
    return tmp_path


def test_nothing_is_wrong_with_what_was_written(folder):
    assert digests.fault(folder) == ""
    (folder / ".nfs0001").touch()  # A network file system's own.
    assert digests.fault(folder) == ""
    assert subprocess.run(["sha256sum", "--quiet", "-c", digests.NAME], cwd=folder, check=False).returncode == 0


def test_without_digests_nothing_is_known(tmp_path):
    assert digests.fault(tmp_path) is None


@pytest.mark.parametrize("name", ["default/d", "commit.txt", digests.NAME])
def test_any_flipped_bit_is_found(folder, name):
    whole = (folder / name).read_bytes()
    for position in {0, 1, len(whole) // 2, len(whole) - 1}:
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            (folder / name).write_bytes(flipped)
            assert digests.fault(folder), (position, bit)
    (folder / name).write_bytes(whole)
    assert digests.fault(folder) == ""


@pytest.mark.parametrize(
    ("name", "length", "said"),
    [
        ("default/d", 255, r"'default/d' (255 bytes) has changed since it was written"),
        ("commit.txt", 0, r"'commit.txt' (0 bytes) has changed since it was written"),
        (digests.NAME, 0, r"is not in sha256sums.txt"),
        (digests.NAME, 76, r"is not in sha256sums.txt"),
    ],
)
def test_a_cut_file_is_found(folder, name, length, said):
    with (folder / name).open("r+b") as file:
        file.truncate(length)
    assert said in digests.fault(folder)


def test_a_missing_file_and_one_too_many_are_found(folder):
    (folder / "default" / "other").touch()
    assert "'default/other' (0 bytes) is not in" in digests.fault(folder)
    (folder / "default" / "d").unlink()
    assert "'default/d' is missing" in digests.fault(folder)
