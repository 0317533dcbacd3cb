"""States come back as they were; a missing or foreign one is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

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
