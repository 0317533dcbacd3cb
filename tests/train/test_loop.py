"""A run learns, survives a kill to the bit, and refuses what cannot go on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run
from flax import nnx

from flexjax.train.loop import read_log
from flexjax.train.step import LoopConfig


def losses(workdir: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_log(workdir / "loss.csv")}


def weights(trainer) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.to_pure_dict(trainer.state.params))]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    trainer = tiny_run.trainer(tmp_path_factory.mktemp("straight"), steps=6)
    trainer.run(on_checkpoint=lambda _: None)
    return trainer


def test_resumed_after_sigkill_is_bit_equal(straight, tmp_path):
    command = [sys.executable, tiny_run.__file__, str(tmp_path), "6", "4"]
    killed = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(losses(tmp_path)) == [1, 2, 3, 4]  # Step 4 was logged, but only step 3 was kept.

    resumed = tiny_run.trainer(tmp_path, steps=6)
    assert resumed.state.step == 3
    resumed.run(on_checkpoint=lambda _: None)

    assert losses(tmp_path) == losses(straight.workdir)
    for a, b in zip(weights(resumed), weights(straight), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_loss_falls(precision, tmp_path):
    trainer = tiny_run.trainer(tmp_path, steps=40, precision=precision)
    trainer.run(on_checkpoint=lambda _: None)
    seen = losses(tmp_path)
    assert seen[1] == pytest.approx(np.log(64), rel=0.1)  # Knows nothing yet.
    assert seen[40] < 0.7 * seen[1]


def test_a_finished_run_is_left_alone(straight):
    before = losses(straight.workdir)
    again = tiny_run.trainer(straight.workdir, steps=6)
    again.run(on_checkpoint=lambda _: pytest.fail("nothing is left to do"))
    assert losses(straight.workdir) == before


def test_fewer_steps_than_were_trained_are_refused(straight):
    with pytest.raises(ValueError, match="has trained 6 steps and loop.steps is 4"):
        tiny_run.trainer(straight.workdir, steps=4)


def test_divergence_is_an_error_and_never_kept(tmp_path):
    trainer = tiny_run.trainer(tmp_path, steps=6)
    trainer.state.params = jax.tree.map(lambda p: p * np.nan, trainer.state.params)
    with pytest.raises(ValueError, match="loss up to step 1 is nan: training diverged"):
        trainer.run(on_checkpoint=lambda _: pytest.fail("a diverged state was kept"))
    assert trainer.checkpoints.latest_step is None


def test_every_kept_state_is_announced(tmp_path):
    steps = []
    tiny_run.trainer(tmp_path, steps=7).run(on_checkpoint=lambda t: steps.append(t.state.step))
    assert steps == [3, 6, 7]


@pytest.mark.parametrize("name", ["steps", "log_every", "checkpoint_every"])
def test_counts_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
        LoopConfig(**{name: 0})
