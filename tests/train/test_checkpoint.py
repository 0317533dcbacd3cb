"""States come back as they were; a missing or foreign one is refused, a damaged one gives way to the one before."""

import shutil
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from flexjax import files
from flexjax.refusal import Refusal
from flexjax.train import digests
from flexjax.train.checkpoint import Checkpoints


def state(value: float):
    return {
        "params": {"w": jnp.full((2, 3), value, jnp.float32)},
        "optimizer": [jnp.array(3, jnp.int32), jnp.full(3, value, jnp.float32)],
    }


def test_the_latest_comes_back_to_the_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step / 3))
    again = Checkpoints(tmp_path)
    assert again.latest_step == 3
    restored = again.restore(state(0))
    np.testing.assert_array_equal(restored["params"]["w"], state(1.0)["params"]["w"])
    np.testing.assert_array_equal(restored["optimizer"][0], 3)


def test_only_the_latest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


def test_an_empty_folder_has_none(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step is None
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoints.restore(state(0))


def test_another_models_state_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    other = state(0)
    other["params"]["w"] = jnp.zeros((4, 3))
    with pytest.raises(
        ValueError, match=r"1 arrays differ, first params/w: float32\[2, 3\] there, float32\[4, 3\] here"
    ):
        checkpoints.restore(other)


def test_another_optimizers_state_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    other = state(0)
    other["optimizer"].append(jnp.zeros(3))
    with pytest.raises(ValueError, match=r"optimizer/2: absent there, float32\[3\] here"):
        checkpoints.restore(other)


@pytest.fixture(scope="module")
def two_states(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, state(step))
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_damage_to_any_file_of_a_state_is_found(two_states, tmp_path, damage):
    names = [p.relative_to(two_states) for p in (two_states / "2").rglob("*") if p.is_file()]
    assert len(names) > 8
    for name in names:
        shutil.copytree(two_states / "2", tmp_path / "2")
        damage(tmp_path / name)
        found = digests.fault(tmp_path / "2")
        assert found or (found is None and name.name == digests.NAME and damage is Path.unlink), name
        shutil.rmtree(tmp_path / "2")


# Where a read fails, TensorStore's other reads end when the loop that waited for them is closed, and say so.
LATE_READS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
LATE_S = 0.5


@pytest.mark.parametrize(
    "digested", [True, pytest.param(False, marks=LATE_READS)], ids=["digests", "of an older version"]
)
def test_a_state_that_cannot_be_read_gives_way_to_the_one_before(two_states, tmp_path, caplog, digested):
    shutil.copytree(two_states, tmp_path, dirs_exist_ok=True)
    (tmp_path / "2" / "default" / "manifest.ocdbt").write_bytes(b"")
    if not digested:
        (tmp_path / "1" / digests.NAME).unlink()
        (tmp_path / "2" / digests.NAME).unlink()
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(state(0))
    if not digested:
        time.sleep(LATE_S)  # So that they say it in this test and in no later one.
    np.testing.assert_array_equal(restored["params"]["w"], state(1)["params"]["w"])
    assert checkpoints.latest_step == 1
    assert "The state of step 2 cannot be read: " in caplog.text and "Going on from step 1;" in caplog.text
    assert ("has no sha256sums.txt" in caplog.text) is not digested
    assert (tmp_path / "2.unreadable").is_dir()

    checkpoints.save(2, state(2.5))  # In its place.
    restored = Checkpoints(tmp_path).restore(state(0))
    np.testing.assert_array_equal(restored["params"]["w"], state(2.5)["params"]["w"])


def test_a_kill_while_the_digests_are_written_loses_nothing(two_states, tmp_path, caplog):
    shutil.copytree(two_states, tmp_path, dirs_exist_ok=True)
    names = tmp_path / "2" / digests.NAME
    names.rename(names.with_name(names.name + files.PARTIAL))
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(state(0))
    np.testing.assert_array_equal(restored["params"]["w"], state(2)["params"]["w"])
    assert "step 2 has no sha256sums.txt, so that flipped bits in it are not found" in caplog.text


def test_where_no_state_can_be_read_each_is_named_and_left(two_states, tmp_path):
    shutil.copytree(two_states, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "1" / "default")
    (tmp_path / "2" / "default" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(Refusal, match=r"can be read \(step 2: '.*step 1: '.*is missing.*another workdir"):
        Checkpoints(tmp_path).restore(state(0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_an_empty_folder_of_a_step_is_no_state(two_states, tmp_path):
    shutil.copytree(two_states, tmp_path, dirs_exist_ok=True)
    (tmp_path / "8").mkdir()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.restore(state(0))
    assert checkpoints.latest_step == 2


@pytest.mark.parametrize("place", ["params", "optimizer"])
def test_a_state_that_is_not_finite_is_not_kept(tmp_path, place):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    broken = state(2)
    if place == "params":
        broken["params"]["w"] = broken["params"]["w"].at[0, 1].set(jnp.nan)
    else:
        broken["optimizer"][1] = broken["optimizer"][1].at[0].set(jnp.inf)
    with pytest.raises(Refusal, match=rf"after step 2 has values that are not finite, in {place}/.*kept is of step 1"):
        checkpoints.save(2, broken)
    assert checkpoints.latest_step == 1


def test_a_state_that_is_not_finite_is_not_restored(tmp_path, monkeypatch, caplog):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    monkeypatch.setattr("flexjax.train.checkpoint.not_finite", lambda _: "")  # As older versions did.
    checkpoints.save(2, state(jnp.nan))
    monkeypatch.undo()
    again = Checkpoints(tmp_path)
    again.restore(state(0))
    assert again.latest_step == 1
    assert "step 2 cannot be read: values that are not finite, in optimizer/1, params/w" in caplog.text
