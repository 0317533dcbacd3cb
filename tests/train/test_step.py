"""The train step on a mesh is the train step on one device, and its program moves what it must and no more."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from devices import run_tests
from flax import nnx

from flexjax.model import CausalLM
from flexjax.train.optimizer import OptimizerConfig
from flexjax.train.step import LoopConfig, TrainProgram
from models.transformer import Layer, Rope, Transformer, TransformerConfig, build

DEEP = TransformerConfig(
    architecture="LlamaForCausalLM", vocab_size=32, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=64,
    max_position=64, layers=(Layer(rope=Rope()),) * 4,
)  # fmt: skip


deep = functools.partial(build, DEEP, dtype=jnp.float32)


def program(make: Callable[[], Any] = deep, **loop) -> TrainProgram:
    return TrainProgram(make, OptimizerConfig(warmup_steps=1), LoopConfig(steps=9, **loop))


@pytest.mark.slow
def test_on_eight_devices():
    run_tests(Path(__file__).with_name("on_eight_devices.py"), 8)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_layers_computed_again_need_less_memory(precision):
    def temporaries(recompute: bool) -> int:
        memory = program(precision=precision, recompute_layers=recompute).lower(8, 64).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporaries(True) < 0.6 * temporaries(False)


class Rows(CausalLM):
    """A model of another family, which can neither run in a loop nor compute a layer again."""

    config = DEEP

    def __init__(self):
        self.weight = nnx.Param(jnp.ones((4, 4)), axes=("embed", "mlp"))


def test_what_a_family_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"cannot compute layers again: .* Set loop.recompute_layers=False"):
        program(Rows, recompute_layers=True)


def test_layers_in_a_loop_decay_like_layers_in_a_row():
    """A norm's scale is no matrix because those of all layers are stacked."""

    def decayed(model: Transformer) -> set[str]:
        """Modules of which a weight shrinks where all gradients are 0."""
        params = nnx.state(model)
        update = program(lambda: model).update
        zeros = jax.tree.map(jnp.zeros_like, params)
        changed, _ = jax.jit(update.update)(zeros, update.init(params), params)
        return {str(path[-2:]) for path, change in nnx.to_flat_state(changed) if (change[...] != 0).any()}

    row = decayed(deep())
    assert decayed(deep().stacked()) == row
    assert any("down" in path for path in row) and not any("scale" in path for path in row)
