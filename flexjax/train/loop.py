"""The training step, and the loop that runs, records and checkpoints it."""

import csv
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flexjax.causal_lm import CausalLM
from flexjax.train.bfloat16_projections import with_bfloat16_projections
from flexjax.train.checkpoint import Checkpoints
from flexjax.train.data import PackedBatches
from flexjax.train.optimizer import OptimizerConfig, make_optimizer, schedule

Precision = Literal["float32", "bfloat16"]
COLUMNS: tuple[str, ...] = ("step", "tokens", "loss", "learning_rate", "tokens_per_s", "train_s")


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    steps: int = 1_000
    precision: Precision = "bfloat16"  # Of projections' operands; everything else is float32.
    log_every: int = 10  # Steps averaged in one row of loss.csv.
    checkpoint_every: int = 100  # Steps; the last step is always kept.

    def __post_init__(self):
        for name in ("steps", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")


def cross_entropy(model: CausalLM, inputs: Int[Array, "B T"], targets: Int[Array, "B T"]) -> Float[Array, ""]:
    """Mean negative log-likelihood of the targets, nats a token, float32."""
    hidden, _ = model.dense(inputs)
    return optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden), targets).mean()


@dataclasses.dataclass
class TrainState:
    """Float32 weights, the optimiser's state, and how many steps made them."""

    params: Any
    optimizer: Any
    step: int

    def tree(self) -> dict[str, Any]:
        return {"params": nnx.to_pure_dict(self.params), "optimizer": jax.tree.leaves(self.optimizer)}


class Trainer:
    """Trains one model on one stream of batches.

    `checkpoints` resumes from the latest state when there is one: data, schedule and step are functions of
    the step number, so a run that was killed and resumed is bit-equal to one that was not.
    """

    def __init__(
        self,
        model: CausalLM,
        batches: PackedBatches,
        optimizer: OptimizerConfig,
        loop: LoopConfig,
        workdir: Path,
    ):
        self.loop, self.batches, self.workdir = loop, batches, workdir
        self.graph, params = nnx.split(model)
        self.learning_rate = schedule(optimizer, loop.steps)
        self.update = make_optimizer(optimizer, loop.steps, params)
        self.state = TrainState(params, self.update.init(params), 0)
        self.checkpoints = Checkpoints(workdir / "checkpoints")
        self._resume()
        self._step = jax.jit(self._make_step(), donate_argnums=(0, 1))

    def model(self, dtype: Any = jnp.float32) -> CausalLM:
        """The model with the present weights, in `dtype`."""
        return nnx.merge(self.graph, jax.tree.map(lambda p: p.astype(dtype), self.state.params))

    def run(self, on_checkpoint: Callable[["Trainer"], None]) -> None:
        """Trains to `loop.steps`; `on_checkpoint` is called after each state that is kept.

        Raises ValueError when the loss is no longer finite; such a state is never kept.
        """
        config, first = self.loop, self.state.step
        log = LossLog(self.workdir / "loss.csv", first, self.batches.config.tokens_per_step, self.learning_rate)
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
                        raise ValueError(
                            f"The loss up to step {step} is {row['loss']}: training diverged. Lower "
                            f"optimizer.learning_rate; the last state kept is of step {self.checkpoints.latest_step}."
                        )
                if kept:
                    self.checkpoints.save(step, self.state.tree())
                    on_checkpoint(self)

    def _advance(self, inputs: np.ndarray, targets: np.ndarray) -> Float[Array, ""]:
        state = self.state
        state.params, state.optimizer, loss = self._step(state.params, state.optimizer, inputs, targets)
        state.step += 1
        return loss

    def _make_step(self) -> Callable[..., Any]:
        transform = with_bfloat16_projections if self.loop.precision == "bfloat16" else lambda f: f

        def loss_of(params: Any, inputs: Array, targets: Array) -> Array:
            return cross_entropy(nnx.merge(self.graph, params), inputs, targets)

        def step(params: Any, optimizer: Any, inputs: Array, targets: Array):
            loss, grads = jax.value_and_grad(transform(loss_of))(params, inputs, targets)
            updates, optimizer = self.update.update(grads, optimizer, params)
            return optax.apply_updates(params, updates), optimizer, loss

        return step

    def _resume(self) -> None:
        step = self.checkpoints.latest_step
        if step is None:
            return
        if step > self.loop.steps:
            raise ValueError(
                f"{self.workdir} has trained {step} steps and loop.steps is {self.loop.steps}: give more steps or "
                "another workdir."
            )
        saved = self.checkpoints.restore(self.state.tree())
        nnx.replace_by_pure_dict(self.state.params, saved["params"])
        self.state.optimizer = jax.tree.unflatten(jax.tree.structure(self.state.optimizer), saved["optimizer"])
        self.state.step = step


class LossLog:
    """loss.csv: the mean loss of every few steps. Rows past the step that a run resumes from are dropped."""

    def __init__(self, path: Path, step: int, tokens_per_step: int, learning_rate: optax.Schedule):
        self.path = path
        self.tokens_per_step, self.learning_rate = tokens_per_step, learning_rate
        kept = [row for row in (read_log(path) if path.is_file() else []) if row["step"] <= step]
        self.train_s = kept[-1]["train_s"] if kept else 0.0
        with path.open("w", newline="") as file:
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
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        return row


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a loss.csv as numbers."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: (int if name in ("step", "tokens") else float)(row[name]) for name in COLUMNS} for row in rows]


def _progress() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[speed]}"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn())
