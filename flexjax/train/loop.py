"""The loop that runs, records and checkpoints the training step."""

import csv
import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Array, Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flexjax import files
from flexjax.data import PackedBatches
from flexjax.model import CausalLM
from flexjax.refusal import Refusal
from flexjax.train.checkpoint import Checkpoints
from flexjax.train.step import TrainProgram

COLUMNS: tuple[str, ...] = ("step", "tokens", "loss", "learning_rate", "tokens_per_s", "train_s")


@dataclasses.dataclass
class TrainState:
    """Float32 weights, the optimiser's state, and how many steps made them."""

    params: Any
    optimizer: Any
    step: int


class Trainer:
    """Trains one model on one stream of batches.

    `checkpoints` resumes from the latest state when there is one, made on whatever mesh: data, schedule and step are
    functions of the step number, so a run that was killed and resumed is bit-equal to one that was not.

    Over several processes (`flexjax.hardware.distributed`) each makes the same calls; process 0 alone writes loss.csv.
    """

    def __init__(
        self,
        program: TrainProgram,
        batches: PackedBatches,
        workdir: Path,
        first: Callable[[], Any] | None = None,
    ):
        """`first` gives the weights to begin with where `workdir` has no state, placed like `program.params`; None is
        fresh ones."""
        self.program, self.batches, self.workdir = program, batches, workdir
        self.loop = program.loop
        for step in batches.config.lengthen_at:  # Refused now, not when it comes.
            program.tokens(*batches.config.shape(step))
        for finding in program.inspect(*batches.config.shape(0)):
            logging.warning("Sharding: %s", finding)
        self.checkpoints = Checkpoints(workdir / "checkpoints")
        self.state = self._resumed() or self._begun((first or program.fresh)())

    def host_model(self, dtype: Any) -> CausalLM | None:
        """The model with the present weights in `dtype`, in the memory of the host of process 0; None in the others,
        which must call it too."""

        def gather(parameter: Array) -> np.ndarray | None:  # One at a time, so that no device holds two whole ones.
            whole = multihost_utils.process_allgather(parameter.astype(dtype), tiled=True)
            return whole if is_first() else None

        params = jax.tree.map(gather, self.state.params)
        return nnx.merge(self.program.graph, params) if is_first() else None

    def run(self, on_checkpoint: Callable[["Trainer"], None]) -> None:
        """Trains to `loop.steps`; `on_checkpoint` is called after each state that is kept.

        Raises Refusal when the loss, or a number in a state that is to be kept, is no longer finite; such a state is
        never kept.
        """
        config, first = self.loop, self.state.step
        log = LossLog(self.workdir / "loss.csv", first, self.batches.config.tokens_per_step, self.program.learning_rate)
        losses: list[Array] = []
        with _progress() as progress:
            bar = progress.add_task("training", total=config.steps, completed=first, loss="", speed="")
            for inputs, targets in itertools.islice(self.batches.since(first), config.steps - first):
                losses.append(self._advance(inputs, targets))
                step = self.state.step
                kept = step == config.steps or step % config.checkpoint_every == 0
                if kept or step % config.log_every == 0:
                    row = log.write(step, losses)
                    losses = []
                    speed = f"{row['tokens_per_s']:,.0f} tokens/s"
                    progress.update(bar, completed=step, loss=f"loss {row['loss']:.3f}", speed=speed)
                    if not math.isfinite(row["loss"]):
                        raise Refusal(
                            f"The loss up to step {step} is {row['loss']}: training diverged. Lower "
                            f"optimizer.learning_rate; the last state kept is of step {self.checkpoints.latest_step}."
                        )
                if kept:
                    self.checkpoints.save(step, _tree(self.program.kept(self.state.params, self.state.optimizer)))
                    on_checkpoint(self)

    def _advance(self, inputs: np.ndarray, targets: np.ndarray) -> Float[Array, ""]:
        state = self.state
        state.params, state.optimizer, loss = self.program.run(state.params, state.optimizer, inputs, targets)
        state.step += 1
        return loss

    def _begun(self, params: Any) -> TrainState:
        return TrainState(params, self.program.fresh_optimizer(params), 0)

    def _resumed(self) -> TrainState | None:
        step = self.checkpoints.latest_step
        if step is None:
            return None
        if step > self.loop.steps:
            raise Refusal(
                f"{self.workdir} has trained {step} steps and loop.steps is {self.loop.steps}: give more steps or "
                "another workdir."
            )
        like_params, like_optimizer = self.program.kept_as
        saved = self.checkpoints.restore(_tree(self.program.kept_as))
        step = self.checkpoints.latest_step  # An earlier one where the latest could not be read.
        assert step is not None
        params = jax.tree.map(lambda x: x, like_params)  # A copy, to be filled.
        nnx.replace_by_pure_dict(params, saved["params"])
        optimizer = jax.tree.unflatten(jax.tree.structure(like_optimizer), saved["optimizer"])
        params, optimizer = self.program.regained((params, optimizer))
        return TrainState(params, optimizer, step)


def _tree(kept: tuple[Any, Any]) -> dict[str, Any]:
    """What a checkpoint holds of the parameters and the optimiser's state."""
    params, optimizer = kept
    return {"params": nnx.to_pure_dict(params), "optimizer": jax.tree.leaves(optimizer)}


def is_first() -> bool:
    """Whether this process writes what several need once."""
    return jax.process_index() == 0


class LossLog:
    """loss.csv: the mean loss of every few steps, written by process 0. Rows past the step that a run resumes from are
    dropped, and what is left of one that was being written when the run was killed."""

    def __init__(self, path: Path, step: int, tokens_per_step: int, learning_rate: optax.Schedule):
        self.path = path
        self.tokens_per_step, self.learning_rate = tokens_per_step, learning_rate
        rows, damaged, cut = _read(path) if path.is_file() else ([], [], "")
        kept = [row for row in rows if row["step"] <= step]
        self.train_s = kept[-1]["train_s"] if kept else 0.0
        self.writes = is_first()
        multihost_utils.sync_global_devices("loss.csv is read")
        if self.writes:
            if cut:
                logging.warning("%s ends within a row, which is cut off: %r", path, cut[:80])
            if damaged:
                aside = files.set_aside(path)
                logging.warning(
                    "%s: %d lines are no rows, first %r; it is now %s, and the rows go on in a new file.",
                    path,
                    len(damaged),
                    damaged[0][:80],
                    aside,
                )
            with files.replacing(path, newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(kept)
        self._started = time.perf_counter()

    def write(self, step: int, losses: Sequence[Array]) -> dict[str, Any]:
        """Adds and returns the row of `losses`, those of the steps since the last row."""
        mean = float(jnp.stack(losses).mean())  # Waits for the device.
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        self.train_s += seconds
        row = {
            "step": step,
            "tokens": step * self.tokens_per_step,
            "loss": mean,
            "learning_rate": float(jnp.asarray(self.learning_rate(step - 1))),
            "tokens_per_s": round(len(losses) * self.tokens_per_step / seconds, 1),
            "train_s": round(self.train_s, 2),
        }
        if self.writes:
            with files.naming(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS).writerow(row)
        return row


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a loss.csv as numbers."""
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], list[str], str]:
    """The rows as numbers, the lines that are none, and what stands after the last line end: a row that was cut."""
    *lines, cut = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows, damaged = [], []
    for index, line in enumerate(lines):
        cells = line.removesuffix("\r").split(",")
        if index == 0 and cells == list(COLUMNS):
            continue
        try:
            rows.append({name: _number_of(name)(cell) for name, cell in zip(COLUMNS, cells, strict=True)})
        except ValueError:
            damaged.append(line)
    return rows, damaged, cut


def _number_of(column: str) -> Callable[[str], int | float]:
    return int if column in ("step", "tokens") else float


def _progress() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[speed]}"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), disable=not is_first())
