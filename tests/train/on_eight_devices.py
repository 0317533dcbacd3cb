"""Training on meshes of up to eight devices: run by test_step.py in a process that has them."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flexjax.hardware.mesh import MeshConfig, make_mesh, presets
from flexjax.train.optimizer import OptimizerConfig
from flexjax.train.step import LoopConfig, TrainProgram, cross_entropy
from models.transformer import TransformerConfig, build, config_from_hf

GOLDEN = Path(__file__).parents[1] / "models/transformer/golden"
ARCHITECTURES = sorted(p.parent.name for p in GOLDEN.glob("*/config.json"))
PRESETS = {m for (_, purpose, n), m in presets().items() if purpose == "training" and 1 < n <= 8}
MESHES = sorted(PRESETS | {MeshConfig(fsdp=2, sequence=2, tensor=2), MeshConfig(sequence=8)}, key=str)
BATCH, LENGTH = 8, 16


def config_of(architecture: str) -> TransformerConfig:
    """The golden model's config, with one layer of each kind that it has."""
    config = config_from_hf(json.loads((GOLDEN / architecture / "config.json").read_text()))
    return dataclasses.replace(config, layers=tuple(dict.fromkeys(config.layers)))


def program_of(config: TransformerConfig, mesh: MeshConfig, **loop) -> TrainProgram:
    devices = jax.devices()[: np.prod([*mesh.sizes.values()])]
    model = functools.partial(build, config, dtype=jnp.float32)
    return TrainProgram(model, OptimizerConfig(warmup_steps=1), LoopConfig(steps=9, **loop), make_mesh(mesh, devices))


def losses_and_gradients(mesh: MeshConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Of every architecture, by one program, which compiles in half the time of nine."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 160, (BATCH, LENGTH + 1)).astype(np.int32)
    programs = {name: program_of(config_of(name), mesh) for name in ARCHITECTURES}

    def run(params: dict[str, Any], inputs: jax.Array, targets: jax.Array):
        loss = lambda p, graph: cross_entropy(nnx.merge(graph, p), inputs, targets)
        return {name: jax.value_and_grad(loss)(params[name], programs[name].graph) for name in ARCHITECTURES}

    where = {name: jax.tree.map(lambda x: x.sharding, p.params) for name, p in programs.items()}
    one = programs[ARCHITECTURES[0]]
    tokens_where = one.tokens(BATCH, LENGTH).sharding
    with jax.set_mesh(one.mesh):
        run = jax.jit(run, in_shardings=(where, tokens_where, tokens_where))
        return jax.device_get(run(params, tokens[:, :-1], tokens[:, 1:]))


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    states = {name: nnx.split(build(config_of(name), dtype=jnp.float32))[1] for name in ARCHITECTURES}
    return jax.device_get(states)


@pytest.fixture(scope="module")
def alone(weights):
    return losses_and_gradients(MeshConfig(), weights)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_loss_and_gradients_are_those_of_one_device(mesh, weights, alone):
    """For every architecture. float32 sums in another order: a few units in the last place of the largest gradient."""
    for name, (loss, gradients) in losses_and_gradients(mesh, weights).items():
        want_loss, want = alone[name]
        np.testing.assert_allclose(loss, want_loss, rtol=2e-6, err_msg=name)
        largest = max(np.abs(g).max() for g in jax.tree.leaves(want))
        for (path, g), w in zip(nnx.to_flat_state(gradients), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g[...], w, rtol=0, atol=2e-6 * largest, err_msg=f"{name}: {path}")
