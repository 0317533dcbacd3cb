"""What the ops over sequences with a fixed-size state have in common: how rows and states belong together.

A ragged call has rows of several sequences end to end (`flexjax.model.RaggedBatch`) and a pool of states, one
slot a sequence. Sequence b owns the rows `query_starts[b]:query_starts[b + 1]` and the slot `state_slots[b]`; it begins
with zeros where `fresh[b]`, whatever its slot holds, and else with what its slot holds, and leaves there its state
after its last row. Sequences with rows come first and have slots of their own; a sequence without rows touches
nothing. Rows from `query_starts[B]` on are padding.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from flexjax.kernels.case import Case

LAYERS = 2  # Calls of a step that is timed.


@dataclasses.dataclass(frozen=True)
class Rows:
    """For each of T rows where it belongs."""

    live: Bool[Array, "T"]
    sequence: Int[Array, "T"]  # Of padding: any.
    slot: Int[Array, "T"]  # Of padding: past the pool, so that a write is dropped.
    offset: Int[Array, "T"]  # Rows of the same sequence before this one.
    starts_at_zero: Bool[Array, "T"]  # Its sequence is fresh.


def rows_of(
    num_rows: int,
    num_slots: int,
    query_starts: Int[Array, "B+1"],
    state_slots: Int[Array, "B"],
    fresh: Bool[Array, "B"],
) -> Rows:
    row = jnp.arange(num_rows, dtype=jnp.int32)
    # All at once: a search in halves would be a loop of tiny ops in every layer.
    sequence = jnp.sum(query_starts[None, 1:] <= row[:, None], axis=1, dtype=jnp.int32)
    live = sequence < state_slots.shape[0]
    sequence = jnp.minimum(sequence, state_slots.shape[0] - 1)
    return Rows(
        live=live,
        sequence=sequence,
        slot=jnp.where(live, state_slots[sequence], num_slots),
        offset=row - query_starts[sequence],
        starts_at_zero=fresh[sequence],
    )


def check_shapes(**arrays: tuple[Array, tuple[int, ...]]) -> None:
    """ValueError for the first array that has not the shape wanted of it."""
    for name, (array, wanted) in arrays.items():
        if array.shape != wanted:
            raise ValueError(f"{name} must have shape {wanted} beside the other arguments; it has {array.shape}.")


def check_batch(
    states: Array, query_starts: Array, state_slots: Array, fresh: Array, max_query_len: int, state: tuple[int, ...]
) -> None:
    """ValueError for a batch or pool of states whose shapes do not fit each other."""
    B = state_slots.shape[0]
    check_shapes(
        states=(states, (states.shape[0], *state)),
        query_starts=(query_starts, (B + 1,)),
        state_slots=(state_slots, (B,)),
        fresh=(fresh, (B,)),
    )
    if max_query_len < 1:
        raise ValueError(f"max_query_len must be positive; got {max_query_len}.")


@dataclasses.dataclass(frozen=True)
class Batch:
    """The sequences of a call for tests and benchmarks: rows of each, and which of them go on from a state."""

    rows: tuple[int, ...]
    goes_on: tuple[bool, ...] | None = None  # None: every second, and every sequence of one row.
    padding_rows: int = 0
    padding_sequences: int = 0

    @property
    def num_rows(self) -> int:
        return sum(self.rows) + self.padding_rows

    @property
    def num_slots(self) -> int:
        return len(self.rows) + 2

    @property
    def max_query_len(self) -> int:
        return max(self.rows)

    @property
    def fresh(self) -> tuple[bool, ...]:
        if self.goes_on is not None:
            return tuple(not old for old in self.goes_on)
        return tuple(n > 1 and b % 2 == 0 for b, n in enumerate(self.rows))

    def arguments(self, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        """query_starts, state_slots, fresh; the slots are strewn over the pool, those of padding point at any."""
        slots = rng.permutation(self.num_slots)[: len(self.rows)]
        padding = [0] * self.padding_sequences
        return (
            jnp.asarray(np.cumsum([0, *self.rows, *padding]), jnp.int32),
            jnp.asarray([*slots, *padding], jnp.int32),
            jnp.asarray([*self.fresh, *(bool(p) for p in padding)], jnp.bool),
        )


def case(op: str, call: Callable[..., Any], shape: str, spec: Any, body: str, calls: int = LAYERS) -> Case:
    """What is timed of such an op: layers of a step, each with a pool of states of its own, all of the same rows."""

    def make():
        x, *others, states, starts, slots, fresh = spec.arguments()
        return (x, [states + 0 for _ in range(calls)]), others, (starts, slots, fresh)

    def step(state, others, batch):
        x, pools = state
        updated = []
        for pool in pools:
            out, pool = call(x, *others, pool, *batch, body=body, **spec.options)
            x = x.at[0, 0].add(0 * out[0, 0])  # No call before the last one is done.
            updated.append(pool)
        return x, updated

    return Case(op, shape, body, make, step, spec.moved_bytes, spec.operations, spec.dtype, calls)
