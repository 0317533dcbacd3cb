"""States of sequences in a TPU's memory, fetched and returned while rows are computed.

A kernel goes through blocks of rows, one grid step a block; the rows of one sequence in one block are a segment. The
state of a sequence lies in fast memory from its first row to its last, over as many blocks as those take; that of the
next sequences is fetched, and that of the last ones written back, behind the computation.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Int

from flexjax.kernels.recurrent import Batch
from flexjax.kernels.tuning import Loop

AHEAD = 2  # Sequences whose states are fetched before their rows are reached.
BUFFERS = 2 * AHEAD  # As many are being written back.


class Scalars(NamedTuple):
    """What a kernel prefetches, as arrays or as the kernel's refs."""

    query_starts: Any
    state_slots: Any
    fresh: Any
    num_live: Any  # [1] sequences with rows.
    first: Any  # Of each block: its first sequence,
    end: Any  # and the one after its last.


NUM_SCALARS = len(Scalars._fields)


def scalars_of(
    num_rows: int,
    block_rows: int,
    query_starts: Int[Array, "B+1"],
    state_slots: Int[Array, "B"],
    fresh: Bool[Array, "B"],
) -> Scalars:
    num_live = jnp.sum(query_starts[1:] > query_starts[:-1], dtype=jnp.int32)
    edges = jnp.arange(pl.cdiv(num_rows, block_rows) + 1, dtype=jnp.int32) * block_rows
    first = jnp.sum(query_starts[None, 1:] <= edges[:-1, None], axis=1, dtype=jnp.int32)
    last = jnp.sum(query_starts[None, :-1] < edges[1:, None], axis=1, dtype=jnp.int32)
    return Scalars(
        query_starts=query_starts.astype(jnp.int32),
        state_slots=state_slots.astype(jnp.int32),
        fresh=fresh.astype(jnp.int32),
        num_live=num_live[None],
        first=first,
        end=jnp.minimum(last, num_live),
    )


@dataclasses.dataclass(frozen=True)
class Segments:
    """Refs of a kernel: the pool of states, and the buffers that states pass through."""

    scalars: Scalars
    pool: Any  # [slots, *state], in main memory.
    buffers: Any  # [BUFFERS, *state]
    loads: Any  # [BUFFERS] semaphores.
    stores: Any

    @staticmethod
    def scratch(state: tuple[int, ...], dtype: Any) -> tuple[Any, ...]:
        """The scratch that the last three fields are."""
        semaphores = pltpu.SemaphoreType.DMA((BUFFERS,))
        return pltpu.VMEM((BUFFERS, *state), dtype), semaphores, semaphores

    @property
    def num_rows(self) -> Any:
        """Of all sequences; the rows after them are padding."""
        return self.scalars.query_starts[self.scalars.query_starts.shape[0] - 1]

    def _load(self, b: Any) -> Any:
        i = jax.lax.rem(b, BUFFERS)
        return pltpu.make_async_copy(self.pool.at[self.scalars.state_slots[b]], self.buffers.at[i], self.loads.at[i])

    def _store(self, b: Any) -> Any:
        i = jax.lax.rem(b, BUFFERS)
        return pltpu.make_async_copy(self.buffers.at[i], self.pool.at[self.scalars.state_slots[b]], self.stores.at[i])

    def _start_load(self, b: Any) -> None:
        pl.when(self.scalars.fresh[b] == 0)(lambda: self._load(b).start())

    def run(self, block_rows: int, compute: Callable[[Any, Any, Any, Any], None]) -> None:
        """`compute(begin, end, first, state)` for each segment of this grid step, in order: the rows `begin:end` of the
        block, whether they are the first of their sequence, and the ref of its state, to be updated."""
        block, num_live = pl.program_id(0), self.scalars.num_live[0]
        lo, hi = block * block_rows, (block + 1) * block_rows

        @pl.when(block == 0)
        def _():
            for b in range(AHEAD):
                pl.when(b < num_live)(lambda b=b: self._start_load(b))

        def segment(b, carry):
            begins, ends = self.scalars.query_starts[b], self.scalars.query_starts[b + 1]
            state = self.buffers.at[jax.lax.rem(b, BUFFERS)]
            is_first = begins >= lo

            @pl.when(is_first)
            def _():
                @pl.when(self.scalars.fresh[b] == 1)
                def _():
                    state[...] = jnp.zeros(state.shape, state.dtype)

                @pl.when(self.scalars.fresh[b] == 0)
                def _():
                    self._load(b).wait()

                following = b + AHEAD

                @pl.when(following < num_live)
                def _():
                    pl.when(following >= BUFFERS)(lambda: self._store(following - BUFFERS).wait())
                    self._start_load(following)

            compute(jnp.maximum(begins, lo) - lo, jnp.minimum(ends, hi) - lo, is_first, state)
            pl.when(ends <= hi)(lambda: self._store(b).start())
            return carry

        jax.lax.fori_loop(self.scalars.first[block], self.scalars.end[block], segment, 0)

        @pl.when(block == pl.num_programs(0) - 1)
        def _():
            wait = lambda b, carry: (self._store(b).wait(), carry)[1]
            jax.lax.fori_loop(jnp.maximum(num_live - BUFFERS, 0), num_live, wait, 0)


def per_turn(registers: int, most: int) -> int:
    """Registers computed in one turn of a loop: as many as divide all evenly. With a rest libtpu 0.0.48.1 ends in a
    segmentation fault (12 registers by eight)."""
    return max(n for n in range(1, most + 1) if registers % n == 0)


def segments_of(batch: Batch, block_rows: int) -> list[int]:
    """The rows of each segment of a batch."""
    segments, done = [], 0
    for rows in batch.rows:
        edges = [done, *range(done // block_rows * block_rows + block_rows, done + rows, block_rows), done + rows]
        segments += [end - begin for begin, end in itertools.pairwise(edges)]
        done += rows
    return segments


def waits(batch: Batch, blocks: int) -> Loop:
    """The loop of `Segments.run` that waits for the last states, which the last of the blocks alone does."""
    return Loop(min(len(batch.rows), BUFFERS) / blocks)


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
