"""The schedule over real stages: run by test_pipeline.py in a process with eight devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from flexjax.hardware.mesh import MeshConfig, make_mesh
from flexjax.hardware.pipeline import pipeline
from flexjax.hardware.program import Program, read
from flexjax.hardware.sharding import TRAINING, constrain, sharding

LAYERS, BATCH, WIDTH, INNER = 8, 32, 16, 48
EXACT_ENOUGH = dict(rtol=0, atol=1e-6)  # float32 sums in another order, values of order 1.


def stage(weights, batch):
    """Layers of x / |x| + n · tanh(x U) V: with no derivative at zero, and with a number that travels beside x."""

    def layer(x, weights):
        up, down = weights
        hidden = jnp.tanh(jnp.einsum("BD,DF->BF", constrain(x, ("batch", "embed"), TRAINING), up))
        norm = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
        return x / norm + jnp.einsum("BF,FD->BD", hidden, down) * batch["n"][:, None].astype(jnp.float32), None

    x, _ = jax.lax.scan(layer, batch["x"], weights)
    return batch | {"x": x}


def weights_and_batch():
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    weights = (normal(LAYERS, WIDTH, INNER) / 8, normal(LAYERS, INNER, WIDTH) / 8)
    return weights, {"x": normal(BATCH, WIDTH), "n": rng.integers(1, 3, BATCH).astype(np.int32)}


def loss(run, weights, x, n):
    """A sum that tells every example from every other."""
    after = run(stage, weights, {"x": x, "n": n})
    return (after["x"] * jnp.arange(1, BATCH + 1, dtype=jnp.float32)[:, None] / BATCH).sum() / WIDTH, after


def in_a_row(stage, weights, batch):
    return stage(weights, batch)


@functools.cache
def expected():
    weights, batch = weights_and_batch()
    return jax.jit(jax.value_and_grad(functools.partial(loss, in_a_row), argnums=(0, 1), has_aux=True))(
        weights, batch["x"], batch["n"]
    )


def compiled(mesh: Mesh, microbatches: int) -> tuple[jax.stages.Compiled, tuple]:
    weights, batch = weights_and_batch()
    put = lambda x, *axes: jax.device_put(x, sharding(axes, x.shape, mesh, TRAINING))
    args = (
        (put(weights[0], "layers", "embed", "mlp"), put(weights[1], "layers", "mlp", "embed")),
        put(batch["x"], "batch", None),
        put(batch["n"], "batch"),
    )
    run = functools.partial(pipeline, microbatches=microbatches)
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(functools.partial(loss, run), argnums=(0, 1), has_aux=True))
        return step.lower(*args).compile(), args


@pytest.mark.parametrize(
    ("config", "microbatches"),
    [
        (MeshConfig(stage=2), 2),
        (MeshConfig(stage=2), 16),
        (MeshConfig(stage=4), 4),
        (MeshConfig(stage=4), 32),  # Of one example each.
        (MeshConfig(stage=8), 8),
        (MeshConfig(stage=8), 16),
        (MeshConfig(stage=4, data=2), 8),
        (MeshConfig(stage=2, fsdp=2, tensor=2), 4),
        (MeshConfig(stage=2, data=2, fsdp=2), 4),
    ],
    ids=str,
)
def test_stages_give_what_layers_in_a_row_give(config: MeshConfig, microbatches: int):
    """Values, and gradients of every weight and every example."""
    mesh = make_mesh(config, jax.devices()[: math.prod(config.sizes.values())])
    step, args = compiled(mesh, microbatches)
    (value, after), gradients = step(*args)
    (want, after_wanted), gradients_wanted = expected()
    np.testing.assert_allclose(value, want, **EXACT_ENOUGH)
    np.testing.assert_array_equal(after["n"], after_wanted["n"])
    np.testing.assert_allclose(after["x"], after_wanted["x"], **EXACT_ENOUGH)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **EXACT_ENOUGH), gradients, gradients_wanted)


def test_a_mesh_of_stages_alone_is_enough():
    mesh = Mesh(np.array(jax.devices()[:4]), ("stage",), axis_types=(AxisType.Auto,))
    step, args = compiled(mesh, 8)
    (value, _), _ = step(*args)
    np.testing.assert_allclose(value, expected()[0][0], **EXACT_ENOUGH)


def moved(program: Program) -> list[tuple[str, int, int, int]]:
    """(kind, turns, bytes that a device sends, devices that share in it) of each collective."""
    return sorted((op.opcode, op.turns, op.sent_bytes, op.group) for op in program.collectives)


def test_one_microbatch_moves_a_tick_and_weights_never():
    S, M = 4, 8
    step, args = compiled(make_mesh(MeshConfig(stage=S, data=2)), M)
    b = BATCH // M // 2
    ticks, x, n = M + S - 1, b * WIDTH * 4, b * 4
    weights = 2 * LAYERS // S * WIDTH * INNER * 4
    assert moved(read(step.as_text())) == sorted(
        [("collective-permute", ticks, x, 2)] * 4  # On and back along the row, forwards and backwards.
        + [("collective-permute", ticks, n, 2)] * 2
        + [("all-reduce", 1, weights, 2)]  # The gradients over data, once and not in each tick.
        + [("all-reduce", 1, 4, 8)]  # The loss.
    )
    assert {shard.data.nbytes for w in args[0] for shard in w.addressable_shards} == {weights // 2}


def test_what_is_kept_is_the_inputs_of_a_stage():
    """Each tick's hidden activations, three times as wide and of every layer, would be kept without computing again."""
    S, M = 2, 16
    step, _ = compiled(make_mesh(MeshConfig(stage=S), jax.devices()[:S]), M)
    b, ticks = BATCH // M, M + S - 1
    inputs, hidden = ticks * b * WIDTH * 4, ticks * LAYERS // S * b * INNER * 4
    weights = 2 * LAYERS // S * WIDTH * INNER * 4
    assert inputs < step.memory_analysis().temp_size_in_bytes - weights < inputs + hidden
