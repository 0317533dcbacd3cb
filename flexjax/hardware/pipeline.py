"""Layers in stages: microbatches flow through groups of devices, each of which holds its own layers alone.

GPipe over the mesh axis `stage`, as one differentiable program. `pipeline` is the schedule, `stages` how many there
are; the other axes of the mesh split the arrays inside a stage as they do without one.

With S stages and M microbatches a pass takes M + S - 1 ticks, so a device idles for (S - 1) / (M + S - 1) of it,
forwards and backwards alike. Kept for the backward pass are the M + S - 1 microbatches that entered a device's stage;
what happens inside it is computed again, a microbatch at a time. docs/decisions/0009-pipeline-stages.md has figures.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from flexjax.hardware.sharding import TRAINING
from flexjax.refusal import Refusal

AXIS = "stage"
COPIES = "data"  # The axis over which every weight is whole.


def stages() -> int:
    """While tracing: how many stages the mesh in use has, 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def pipeline[Batch](stage: Callable[[Any, Batch], Batch], weights: Any, batch: Batch, *, microbatches: int) -> Batch:
    """`stage(weights, batch)`, computed by the S stages of the mesh in use (`jax.set_mesh`), each with its own layers.

    Equivalent to this, where `part` runs over S equal parts of the weights:

        for part in parts: batch = stage(part, batch)

    `weights` is a pytree whose arrays have a leading axis of layers; it is split over the stages and never moves.
    `batch` is a pytree whose arrays have a leading axis of examples. `stage` gives it back in the same shapes and
    dtypes, and treats every example by itself; what it needs of an example (say, positions) travels with it.

    The examples come and go split over `stage` too, outermost, as the rule of "batch" says: so what stands before
    and after the pipeline is shared out among the stages, and every stage begins with M / S whole microbatches. A
    tick moves one to the next stage, and one towards the first stage or back from the last.

    Refusal unless S divides M and each axis of layers, and M × data × fsdp the number of examples.
    """
    mesh, count = jax.sharding.get_abstract_mesh(), stages()
    _check(weights, batch, microbatches)
    # Example e = (s, b, j) is the b-th of microbatch (s, j).
    streamed = lambda x: x.reshape(count, -1, microbatches // count, *x.shape[1:]).swapaxes(1, 2)
    merged = lambda x: x.swapaxes(1, 2).reshape(-1, *x.shape[3:])
    copies = tuple(axis for axis in mesh.axis_names if axis == COPIES)
    examples = PartitionSpec(AXIS, None, copies)
    run = jax.shard_map(
        functools.partial(_schedule, stage, count, copies),
        in_specs=(PartitionSpec(AXIS), examples),
        out_specs=examples,
        axis_names={AXIS, *copies},
    )
    return jax.tree.map(merged, run(weights, jax.tree.map(streamed, batch)))


def _schedule[Batch](
    stage: Callable[[Any, Batch], Batch], count: int, copies: tuple[str, ...], weights: Any, stream: Batch
) -> Batch:
    """One stage's part. `stream` is [1, M / S, …], a window of M / S slots on the row of all microbatches.

    The row moves towards the first stage, a slot a tick, round by round, so that microbatch t stands at the first
    stage in tick t, and is followed by the results that the last stage puts into the slots that fall free.
    """
    stream = jax.tree.map(lambda x: x[0], stream)
    slots = jax.tree.leaves(stream)[0].shape[0]
    # Every copy of the weights has a gradient of its own through all ticks, and they are summed once, at the end. Left
    # to itself XLA would sum them in each tick.
    weights = jax.tree.map(lambda w: jax.lax.pcast(w, copies, to="varying"), weights)
    here = jax.lax.axis_index(AXIS)
    inside = jax.checkpoint(stage, prevent_cse=False)

    def tick(carry: tuple[Batch, Batch], t: jax.Array) -> tuple[tuple[Batch, Batch], None]:
        arrived, stream = carry
        slot = t % slots
        waiting = jax.tree.map(lambda x: x[slot], stream)
        done = inside(weights, _where(here == 0, waiting, arrived))
        filled = _where(here == count - 1, done, _shift(waiting, -1, count))
        stream = jax.tree.map(lambda x, y: x.at[slot].set(y), stream, filled)
        return (_shift(done, 1, count), stream), None

    # Until its first microbatch arrives a stage works on one that waits, for nobody: not on zeros, where a stage may
    # have no derivative, and zero times infinity would spoil the gradients of its weights.
    idle = jax.tree.map(lambda x: x[0], stream)
    ticks = jnp.arange(slots * count + count - 1, dtype=jnp.int32)
    (_, stream), _ = jax.lax.scan(tick, (idle, stream), ticks)
    # Microbatch m came out in tick m + S - 1, and stands at its own stage again, in the slot of that tick.
    return jax.tree.map(lambda x: jnp.roll(x, -((count - 1) % slots), axis=0)[None], stream)


def _shift[Batch](batch: Batch, by: int, count: int) -> Batch:
    """What the stage `by` places before this one has."""
    pairs = [(s, s + by) for s in range(count) if 0 <= s + by < count]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, pairs), batch)


def _where[Batch](condition: jax.Array, one: Batch, other: Batch) -> Batch:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), one, other)


def _check(weights: Any, batch: Any, microbatches: int) -> None:
    mesh, count = jax.sharding.get_abstract_mesh(), stages()
    if microbatches < 1 or microbatches % count:
        idle = lambda per_stage: f"{per_stage * count} idles for {(count - 1) / ((per_stage + 1) * count - 1):.0%}"
        raise Refusal(
            f"Every stage begins with as many microbatches: their number must be a multiple of stage={count}; got "
            f"{microbatches}. A pipeline of {idle(1)} of its time, of {idle(4)}, of {idle(8)}."
        )
    for layers in sorted({w.shape[0] for w in jax.tree.leaves(weights)}):
        if layers % count:
            raise Refusal(
                f"Every stage has as many layers: the leading axis of weights must divide by stage={count}; it is "
                f"{layers}. Run {layers % count} of them outside the pipeline."
            )
    within = [axis for axis in TRAINING["batch"].mesh_axes if axis != AXIS and mesh.shape.get(axis, 1) > 1]
    least = microbatches * math.prod(mesh.shape[axis] for axis in within)
    for size in sorted({x.shape[0] for x in jax.tree.leaves(batch)}):
        if size % least:
            factors = " × ".join([f"{microbatches} microbatches", *(f"{axis}={mesh.shape[axis]}" for axis in within)])
            raise Refusal(
                f"Every microbatch has as many examples on every device: a batch must divide by {factors}; it has "
                f"{size} examples. Take {-(-size // least) * least} of them, or other microbatches, a multiple of "
                f"stage={count}."
            )
