"""Layers in stages: microbatches flow through groups of devices, each of which holds its own layers alone.

GPipe over the mesh axis `stage`, as one differentiable program: `pipeline` is the schedule and `stages` how many
there are. The schedule's own axis is the only one handled by hand; `data`, `fsdp`, `tensor` and `sequence` split the
arrays of a stage as they do without it.

With S stages and M microbatches a pass takes M + S - 1 ticks, so that a device idles for (S - 1) / (M + S - 1) of it,
forwards and backwards alike. Kept for the backward pass are the M + S - 1 microbatches that entered a device's stage;
what happens inside a stage is computed again, a microbatch at a time.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

AXIS = "stage"


def stages() -> int:
    """While tracing: how many stages the mesh in use has, 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def pipeline[Batch](stage: Callable[[Any, Batch], Batch], weights: Any, batch: Batch, *, microbatches: int) -> Batch:
    """`stage(weights, batch)` with all the weights, computed by the stages of the mesh in use (`jax.set_mesh`).

    Equivalent to S calls one after another, each with its part of the weights:

        for part in jax.tree.map(lambda w: jnp.split(w, S), weights): batch = stage(part, batch)

    `weights` is a pytree whose arrays have a leading axis of layers, split over the stages and never moved. `batch` is
    a pytree whose arrays have a leading axis of examples; `stage` gives it back in the same shapes and dtypes, and
    treats every example by itself. All that a stage needs of an example travels with it (its positions, say).

    The examples come and go split over the stages (`examples` is the first axis of a
    `PartitionSpec(("stage", "data", "fsdp"))`), so that what stands before and after the pipeline is shared out
    too. On the way they move a microbatch a tick: one to the next stage, one towards the first or back from the last.

    ValueError unless S divides `microbatches` and each axis of layers, and `microbatches` the number of examples.
    """
    count = stages()
    _check(weights, batch, count, microbatches)
    # Example e = (s, b, j) is the b-th of microbatch (s, j): so a split over (stage, data, fsdp) gives every stage
    # M / S whole microbatches, and no example moves as they are formed.
    streamed = lambda x: x.reshape(count, -1, microbatches // count, *x.shape[1:]).swapaxes(1, 2)
    merged = lambda x: x.swapaxes(1, 2).reshape(-1, *x.shape[3:])
    run = jax.shard_map(
        functools.partial(_schedule, stage, count),
        in_specs=(PartitionSpec(AXIS), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(AXIS),
        axis_names={AXIS},
    )
    return jax.tree.map(merged, run(weights, jax.tree.map(streamed, batch)))


def _schedule[Batch](stage: Callable[[Any, Batch], Batch], count: int, weights: Any, stream: Batch) -> Batch:
    """One stage's part. `stream` is [1, M / S, …], a window of M / S slots on the row of all microbatches.

    The row moves towards the first stage, a slot a tick, round by round, so that microbatch t stands at the first
    stage in tick t, and is followed by the results that the last stage puts into the slots that fall free.
    """
    stream = jax.tree.map(lambda x: x[0], stream)
    slots = jax.tree.leaves(stream)[0].shape[0]
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

    # Before its first microbatch a stage works on zeros, whose results nobody reads.
    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[0]), stream)
    ticks = jnp.arange(slots * count + count - 1, dtype=jnp.int32)
    (_, stream), _ = jax.lax.scan(tick, (nothing, stream), ticks)
    # Microbatch m came out in tick m + S - 1, and stands at its own stage again, in the slot of that tick.
    return jax.tree.map(lambda x: jnp.roll(x, -((count - 1) % slots), axis=0)[None], stream)


def _shift[Batch](batch: Batch, by: int, count: int) -> Batch:
    """What the stage `by` places before this one has."""
    pairs = [(s, s + by) for s in range(count) if 0 <= s + by < count]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, pairs), batch)


def _where[Batch](condition: jax.Array, one: Batch, other: Batch) -> Batch:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), one, other)


def _check(weights: Any, batch: Any, count: int, microbatches: int) -> None:
    if microbatches < 1 or microbatches % count:
        raise ValueError(
            f"Each stage takes and gives as many microbatches: their number must be a multiple of stage={count}; got "
            f"{microbatches}. {4 * count} would idle for {(count - 1) / (5 * count - 1):.0%} of the time, "
            f"{8 * count} for {(count - 1) / (9 * count - 1):.0%}."
        )
    for layers in sorted({w.shape[0] for w in jax.tree.leaves(weights)}):
        if layers % count:
            raise ValueError(
                f"Every stage has as many layers: the leading axis of the weights must divide by stage={count}; it is "
                f"{layers}. Run the {layers % count} left over outside the pipeline, or choose stage among "
                f"{_divisors(layers)}."
            )
    for examples in sorted({x.shape[0] for x in jax.tree.leaves(batch)}):
        if examples % microbatches:
            raise ValueError(
                f"Microbatches are alike: their number must divide the examples of a batch; got {microbatches} of "
                f"{examples} examples. Choose it among the multiples of stage={count} that divide the batch, or a "
                f"batch of {-(-examples // microbatches) * microbatches}."
            )


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
