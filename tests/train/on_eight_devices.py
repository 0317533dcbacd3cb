"""Training on meshes of up to eight devices: run by test_step.py in a process that has them."""

import dataclasses
import functools
import json
import math
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flexjax.data.batches import DataConfig, PackedBatches
from flexjax.hardware.mesh import MeshConfig, make_mesh, presets
from flexjax.train.loop import Trainer, read_log
from flexjax.train.optimizer import OptimizerConfig
from flexjax.train.step import LoopConfig, TrainProgram, cross_entropy
from models.transformer import Layer, Rope, TransformerConfig, build, config_from_hf

GOLDEN = Path(__file__).parents[1] / "models/transformer/golden"
ARCHITECTURES = sorted(p.parent.name for p in GOLDEN.glob("*/config.json"))
PRESETS = {m for (_, purpose, n), m in presets().items() if purpose == "training" and 1 < n <= 8}
# Of presets that differ in size alone, the largest: nine architectures take ten seconds to compile for a mesh.
LARGEST = {tuple(axis for axis, n in m.sizes.items() if n > 1): m for m in sorted(PRESETS, key=lambda m: m.fsdp)}
MESHES = sorted({*LARGEST.values(), MeshConfig(fsdp=2, sequence=2, tensor=2), MeshConfig(sequence=8)}, key=str)
BATCH, LENGTH = 8, 16


def config_of(architecture: str) -> TransformerConfig:
    """The golden model's config, with one layer of each kind that it has."""
    config = config_from_hf(json.loads((GOLDEN / architecture / "config.json").read_text()))
    return dataclasses.replace(config, layers=tuple(dict.fromkeys(config.layers)))


def program_of(config: TransformerConfig, mesh: MeshConfig, **loop) -> TrainProgram:
    devices = jax.devices()[: math.prod(mesh.sizes.values())]
    model = functools.partial(build, config, dtype=jnp.float32)
    return TrainProgram(model, OptimizerConfig(warmup_steps=1), LoopConfig(steps=9, **loop), make_mesh(mesh, devices))


def losses_and_gradients(mesh: MeshConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Of every architecture, by one program, which compiles in half the time of nine."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 160, (BATCH, LENGTH + 1)).astype(np.int32)
    programs = {name: program_of(config_of(name), mesh, precision="float32") for name in ARCHITECTURES}

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


SMALL = TransformerConfig(
    architecture="LlamaForCausalLM", vocab_size=64, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48,
    max_position=64, layers=(Layer(rope=Rope()),) * 4, tied_embeddings=True,
)  # fmt: skip


class Counting(PackedBatches):
    """Counting upwards, again and again: easy to learn."""

    def __init__(self):
        documents = [np.arange(start, start + 40, dtype=np.int32) % 64 for start in range(50)]
        super().__init__(documents, DataConfig(batch_size=BATCH, sequence_length=LENGTH))


ONE, FSDP, FSDP_TENSOR = MeshConfig(), MeshConfig(fsdp=8), MeshConfig(fsdp=4, tensor=2)
MIXED, STAGES = MeshConfig(fsdp=2, sequence=2, tensor=2), MeshConfig(stage=2, fsdp=2, tensor=2)
RUNS = {ONE: {}, FSDP_TENSOR: {}, MIXED: dict(recompute_layers=True), STAGES: dict(microbatches=4)}


def trainer(workdir: Path, mesh: MeshConfig, **loop) -> Trainer:
    devices = jax.devices()[: math.prod(mesh.sizes.values())]
    config = LoopConfig(steps=4, log_every=1, checkpoint_every=2, precision="float32", **loop)
    model = functools.partial(build, SMALL, dtype=jnp.float32)
    program = TrainProgram(model, OptimizerConfig(learning_rate=1e-2, warmup_steps=1), config, make_mesh(mesh, devices))
    return Trainer(program, Counting(), workdir)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[MeshConfig, Trainer]:
    """Four steps on each mesh, with checkpoints after two and four."""
    done = {}
    for i, (mesh, loop) in enumerate(RUNS.items()):
        done[mesh] = trainer(tmp_path_factory.mktemp(f"run{i}"), mesh, **loop)
        done[mesh].run(on_checkpoint=lambda _: None)
    return done


def losses(workdir: Path) -> list[float]:
    return [row["loss"] for row in read_log(workdir / "loss.csv")]


def kept(run: Trainer) -> list[np.ndarray]:
    """The weights and moments, an array a layer, whichever mesh has trained them."""
    return [np.asarray(x) for x in jax.tree.leaves(run.program.kept(run.state.params, run.state.optimizer))]


def assert_same_run(one: Trainer, other: Trainer) -> None:
    """Float32 sums in another order. Adam divides a gradient by its size, so that the last places of a small one
    become a part of a step, whose length is 1e-2."""
    np.testing.assert_allclose(losses(one.workdir), losses(other.workdir), rtol=1e-5)
    for a, b in zip(kept(one), kept(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-4)


@pytest.mark.parametrize("mesh", [FSDP_TENSOR, MIXED, STAGES], ids=str)
def test_a_run_on_a_mesh_is_that_on_one_device(mesh, runs):
    assert_same_run(runs[mesh], runs[ONE])


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (ONE, FSDP_TENSOR), (FSDP_TENSOR, ONE), (FSDP_TENSOR, FSDP), (MIXED, FSDP_TENSOR),
        (FSDP_TENSOR, STAGES), (STAGES, FSDP_TENSOR), (STAGES, ONE),
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_is_restored_on_another_mesh(first, then, runs):
    """To the bit, each device with its own part alone."""
    restored = trainer(runs[first].workdir, then, **RUNS.get(then, {}))
    assert restored.state.step == 4
    for a, b in zip(kept(restored), kept(runs[first]), strict=True):
        np.testing.assert_array_equal(a, b)
    like = jax.tree.leaves((restored.program.params, restored.program.optimizer))
    arrays = jax.tree.leaves((restored.state.params, restored.state.optimizer))
    assert all(a.sharding.is_equivalent_to(b.sharding, a.ndim) for a, b in zip(arrays, like, strict=True))


@pytest.mark.parametrize(("first", "then"), [(FSDP_TENSOR, ONE), (ONE, STAGES)], ids=str)
def test_a_run_goes_on_on_another_mesh(first, then, runs, tmp_path):
    shutil.copytree(runs[first].workdir, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    run = trainer(tmp_path, then, **RUNS[then])
    assert run.state.step == 2
    run.run(on_checkpoint=lambda _: None)
    assert_same_run(run, runs[ONE])


COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
# Sizes of which no two arrays have the same, so that what crosses between devices is known by its number of elements.
WIDE = TransformerConfig(
    architecture="LlamaForCausalLM", vocab_size=320, d_model=64, num_heads=8, num_kv_heads=2, head_dim=24, d_ff=208,
    max_position=64, layers=(Layer(rope=Rope()),) * 2,
)  # fmt: skip


def collectives(text: str) -> dict[str, list[int]]:
    """Elements of each float array that crosses, by kind of collective."""
    found: dict[str, list[int]] = defaultdict(list)
    for shapes, kind in COLLECTIVE.findall(text):
        found[kind] += [
            math.prod(int(d) for d in dims.split(",") if d) for dims in re.findall(r"f32\[([\d,]*)\]", shapes)
        ]
    return found


def compiled(mesh: MeshConfig) -> tuple[dict[str, list[int]], dict[str, int]]:
    """What crosses in a float32 step, and the elements of each weight.

    A device holds an eighth of weights and moments and updates it in place, on whatever mesh of eight.
    """
    program = program_of(WIDE, mesh, precision="float32")
    step = program.lower(BATCH, LENGTH).compile()
    text, memory = step.as_text(), step.memory_analysis()
    assert text is not None and memory is not None
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((program.params, program.optimizer)))
    assert memory.argument_size_in_bytes <= whole / 8 + 2048, "and the tokens"
    assert memory.alias_size_in_bytes >= whole / 8
    assert not program.inspect(BATCH, LENGTH)
    return collectives(text), {name: value.size for name, _, value in program.arrays}


def moved(weights: dict[str, int]) -> list[int]:
    """All but the embedding, which stays where it is: its rows change places, and back in the backward pass."""
    return [size for name, size in weights.items() if name != "embedding.table"]


CHANGED_PLACES = 2 * BATCH * LENGTH * WIDE.d_model // 8


def test_fsdp_gathers_each_weight_once_and_sums_each_gradient_once():
    found, weights = compiled(FSDP)
    assert sorted(found["all-gather"]) == sorted(moved(weights))
    assert sorted(n for n in found["all-reduce"] + found["reduce-scatter"] if n > 1) == sorted(moved(weights))
    assert sum(found["all-to-all"]) == CHANGED_PLACES


def test_context_parallelism_gathers_keys_and_values_too():
    found, weights = compiled(MeshConfig(sequence=8))
    keys_and_values = 4 * [BATCH * LENGTH * WIDE.num_kv_heads * WIDE.head_dim]
    assert sorted(found["all-gather"]) == sorted([*moved(weights), *keys_and_values])
    assert sorted(n for n in found["all-reduce"] if n > 1) == sorted([*moved(weights), *keys_and_values])
    assert sum(found["all-to-all"]) == CHANGED_PLACES and not found["collective-permute"]


def test_with_tensor_parallelism_each_device_gathers_its_own_half_of_a_weight():
    found, weights = compiled(FSDP_TENSOR)
    halves = {n // 2 for name, n in weights.items() if "norm" not in name} | {WIDE.d_model}
    assert set(found["all-gather"]) == halves
    rows = BATCH // 4 * LENGTH
    assert set(found["all-reduce"]) == halves | {1, rows, rows * WIDE.d_model}


@pytest.mark.parametrize(
    ("mesh", "batch_size", "length", "message"),
    [
        (FSDP, 12, 16, "its batch_size must divide by fsdp=8; got 12. Take 16, or give devices to other axes"),
        (MeshConfig(data=2, fsdp=4), 4, 16, "its batch_size must divide by data=2 × fsdp=4; got 4"),
        (MeshConfig(sequence=8), 8, 12, "its length must divide by sequence=8; got 12. Take 16"),
        (MeshConfig(stage=2, fsdp=4), 8, 16, "its batch_size must divide by fsdp=4 × microbatches=4; got 8. Take 16"),
    ],
    ids=str,
)
def test_a_step_that_cannot_be_shared_out_is_refused(mesh, batch_size, length, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        program_of(WIDE, mesh, microbatches=4).tokens(batch_size, length)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshConfig(expert=8), "none has a dimension for expert=8"),
        (
            MeshConfig(stage=2),
            "loop.microbatches must be a multiple of mesh.stage=2; got 1. Take 8, with which a device idles for 11%",
        ),
    ],
    ids=str,
)
def test_a_mesh_that_the_model_cannot_use_is_refused(mesh, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        program_of(WIDE, mesh).inspect(BATCH, LENGTH)
