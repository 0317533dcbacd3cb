"""A run learns, survives a kill to the bit, and refuses what cannot go on."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx

from flexjax.refusal import Refusal
from flexjax.train import step as train_step
from flexjax.train.loop import LossLog, read_log
from flexjax.train.step import LoopConfig, cross_entropy


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


@pytest.fixture
def nan_gradients(monkeypatch):
    """A loss of the same value, whose gradient is 0 × infinity."""

    def loss(model, inputs, targets):
        zero = 0 * model.embedding.table[...].sum()
        return cross_entropy(model, inputs, targets) + 0 * jnp.sqrt(zero)

    monkeypatch.setattr(train_step, "cross_entropy", loss)


def test_a_nan_gradient_of_the_last_step_is_an_error_and_never_kept(straight, tmp_path, nan_gradients):
    shutil.copytree(straight.workdir, tmp_path, dirs_exist_ok=True)
    trainer = tiny_run.trainer(tmp_path, steps=7)
    with pytest.raises(Refusal, match="after step 7 has values that are not finite, in .*kept is of step 6"):
        trainer.run(on_checkpoint=lambda _: pytest.fail("a diverged state was kept"))
    assert losses(tmp_path)[7] < 5  # Finite.
    assert trainer.checkpoints.latest_step == 6


def test_a_state_that_cannot_be_read_costs_its_steps_alone(straight, tmp_path):
    shutil.copytree(straight.workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "6" / "default" / "_METADATA").unlink()
    resumed = tiny_run.trainer(tmp_path, steps=6)
    assert resumed.state.step == 3
    resumed.run(on_checkpoint=lambda _: None)
    assert losses(tmp_path) == losses(straight.workdir)
    assert [row["step"] for row in read_log(tmp_path / "loss.csv")] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(weights(resumed), weights(straight), strict=True):
        np.testing.assert_array_equal(a, b)


def log(path: Path, step: int) -> LossLog:
    return LossLog(path, step, 64, lambda _: 1e-3)


@pytest.fixture
def loss_csv(tmp_path) -> Path:
    first = log(tmp_path / "loss.csv", 0)
    for step in (1, 2, 3):
        first.write(step, [jnp.float32(step)])
    return tmp_path / "loss.csv"


def test_a_torn_row_is_cut_off_with_a_word(loss_csv, caplog):
    whole = loss_csv.read_bytes()
    rows = whole.splitlines(keepends=True)
    for cut in range(2, len(rows[-1])):
        loss_csv.write_bytes(whole[:-cut])
        caplog.clear()
        log(loss_csv, 3).write(3, [jnp.float32(3)])
        assert "ends within a row, which is cut off: '3" in caplog.text
        assert list(losses(loss_csv.parent)) == [1, 2, 3]


def test_a_torn_head_is_written_again(loss_csv):
    loss_csv.write_text("step,tok")
    log(loss_csv, 0).write(1, [jnp.float32(1)])
    assert list(losses(loss_csv.parent)) == [1]


def test_damaged_rows_are_left_out_and_their_file_is_kept(loss_csv, caplog):
    rows = loss_csv.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*rows[:2], b"\0" * 20 + b"\r\n", rows[3]])
    loss_csv.write_bytes(damaged)
    log(loss_csv, 3)
    assert list(losses(loss_csv.parent)) == [1, 3]
    assert "1 lines are no rows" in caplog.text
    assert loss_csv.with_name("loss.csv.unreadable").read_bytes() == damaged


def test_the_rows_stay_where_rewriting_them_fails(loss_csv, monkeypatch):
    before = loss_csv.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        log(loss_csv, 2)
    assert loss_csv.read_bytes() == before


def test_every_kept_state_is_announced(tmp_path):
    steps = []
    tiny_run.trainer(tmp_path, steps=7).run(on_checkpoint=lambda t: steps.append(t.state.step))
    assert steps == [3, 6, 7]


@pytest.mark.parametrize("name", ["steps", "log_every", "checkpoint_every"])
def test_counts_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
        LoopConfig(**{name: 0})
