"""A training run small enough to repeat: `python tiny_run.py WORKDIR STEPS [DIE_AT]`.

Writes loss.csv and checkpoints under WORKDIR. With DIE_AT the process kills itself with SIGKILL when
the batch of that step is asked for.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flexjax.data.batches import DataConfig, PackedBatches
from flexjax.nn import Precision
from flexjax.train.loop import Trainer
from flexjax.train.optimizer import OptimizerConfig
from flexjax.train.step import LoopConfig, TrainProgram
from models import transformer
from models.transformer import Layer, Rope, Transformer, TransformerConfig

MODEL = TransformerConfig(
    architecture="LlamaForCausalLM",
    vocab_size=64,
    d_model=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    d_ff=32,
    max_position=32,
    layers=(Layer(rope=Rope(10_000.0)),),
    tied_embeddings=True,
)


class Batches(PackedBatches):
    """Counting upwards, again and again: easy to learn."""

    def __init__(self, die_at: int | None = None):
        counting = [np.arange(start, start + 40, dtype=np.int32) % 64 for start in range(50)]
        super().__init__(counting, DataConfig(batch_size=4, sequence_length=16))
        self.die_at = die_at

    def __getitem__(self, step: int):
        if step == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(step)


def build() -> Transformer:
    return transformer.build(MODEL, dtype=jnp.float32)


def trainer(
    workdir: Path,
    steps: int,
    die_at: int | None = None,
    precision: Precision = "bfloat16",
    mesh: jax.sharding.Mesh | None = None,
) -> Trainer:
    loop = LoopConfig(steps=steps, log_every=1, checkpoint_every=3, precision=precision)
    program = TrainProgram(build, OptimizerConfig(learning_rate=1e-2, warmup_steps=2), loop, mesh)
    return Trainer(program, Batches(die_at), workdir)


if __name__ == "__main__":
    folder, *numbers = sys.argv[1:]
    trainer(Path(folder), *map(int, numbers)).run(on_checkpoint=lambda _: None)
