"""The selective scan on TPUs: one pass over the rows, the state of a sequence in fast memory from first to last.

The state is computed `[N, 1024]` at a time, in registers, with N along the sublanes. What a row has one of for every
n (its B and C) is spread over the lanes once a block, by `_spread`. The sum over n is not taken row by row, which would
turn sublanes eight times as often: what is left of it after whole registers are added waits in `partial`, and is
added up for eight rows at a time by reading every eighth sublane.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from flexjax.kernels.recurrent_tpu import NUM_SCALARS, Scalars, Segments, scalars_of

BLOCK_ROWS = 256  # At a time, of as few channels as leave room for them.
BLOCK_REGISTERS = 8  # Channels whose states are computed at a time, in registers of `LANES`.
BLOCK_BYTES = 80 * 2**20  # What rows at a time may hold.
UNROLL = 16  # Rows computed in one turn of the loop.
VMEM_BYTES = 96 * 2**20  # Of 128 MiB; the rest is XLA's.
LANES, SUBLANES = 128, 8  # Of a vector register.


def selective_scan(
    x: Float[Array, "T D"],
    dt: Float[Array, "T D"],
    A: Float[Array, "N D"],
    B: Float[Array, "T N"],
    C: Float[Array, "T N"],
    skip: Float[Array, "D"],
    dt_bias: Float[Array, "D"],
    z: Float[Array, "T D"] | None,
    states: Float[Array, "slots N D"],
    query_starts: Int[Array, "B+1"],
    state_slots: Int[Array, "B"],
    fresh: Bool[Array, "B"],
    *,
    max_query_len: int,
) -> tuple[Float[Array, "T D"], Float[Array, "slots N D"]]:
    """The contract of `api.py`, without gradients."""
    del max_query_len  # Decoding rows are segments like others.
    (T, D), N = x.shape, A.shape[0]
    _refuse(x, A, states)
    rows = block_rows(T, D, x.dtype.itemsize)
    scalars = scalars_of(T, rows, query_starts, state_slots, fresh)

    by_row = lambda width: pl.BlockSpec((rows, width), lambda i, *_: (i, 0))
    whole = lambda height: pl.BlockSpec((height, D), lambda i, *_: (0, 0))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    gate = () if z is None else (z,)
    inputs = (
        x,
        dt,
        B,
        C,
        *gate,
        A.astype(jnp.float32) * math.log2(math.e),
        skip.astype(jnp.float32)[None],
        dt_bias.astype(jnp.float32)[None],
    )
    call = pl.pallas_call(
        functools.partial(_kernel, gated=z is not None, rows=rows),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(pl.cdiv(T, rows),),
            in_specs=[
                *(by_row(a.shape[1]) for a in (x, dt, B, C, *gate)), whole(N), whole(1), whole(1), anywhere,
            ],
            out_specs=[by_row(D), anywhere],
            scratch_shapes=[
                *Segments.scratch((N, D), states.dtype),
                pltpu.VMEM((D // LANES, rows, LANES), jnp.float32),
                pltpu.VMEM((D // LANES, rows, LANES), jnp.float32),
                pltpu.VMEM((rows, N, LANES), jnp.float32),
                pltpu.VMEM((rows, N, LANES), jnp.float32),
                pltpu.VMEM((D // LANES, rows * SUBLANES, LANES), jnp.float32),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(states.shape, states.dtype)],
        input_output_aliases={len(scalars) + len(inputs): 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_BYTES),
        cost_estimate=_cost(x, A, B, z, states, state_slots),
        name="selective_scan",
    )  # fmt: skip
    return call(*scalars, *inputs, states)


def block_rows(num_rows: int, channels: int, itemsize: int) -> int:
    """Rows at a time, of so many."""
    # Two float32 and the eighth part of a sum's registers; four arrays twice, being moved and computed on.
    each = channels * (4 * (2 + SUBLANES) + 2 * 4 * itemsize)
    tile = 2 * SUBLANES
    return min(BLOCK_ROWS, max(1, BLOCK_BYTES // each // tile) * tile, -(-num_rows // tile) * tile)


def _refuse(x: Array, A: Array, states: Array) -> None:
    N, D = A.shape
    if D % LANES or N % SUBLANES:
        raise NotImplementedError(
            f"states of [{N}, {D}]; N must be a multiple of {SUBLANES} and D of {LANES}, the sublanes and lanes of a "
            "register"
        )
    if x.dtype not in (jnp.float32, jnp.bfloat16) or states.dtype != jnp.float32:
        raise NotImplementedError(
            f"x is {x.dtype.name} and states are {states.dtype.name}; float32 and bfloat16 are served, and states of "
            "float32"
        )


def _cost(x: Array, A: Array, B: Array, z: Array | None, states: Array, state_slots: Array) -> pl.CostEstimate:
    """Of every sequence's state read and written."""
    (T, D), N = x.shape, A.shape[0]
    moved = (3 if z is None else 4) * x.nbytes + 2 * B.nbytes + A.nbytes
    return pl.CostEstimate(
        flops=6 * T * N * D,
        transcendentals=T * (N + 3) * D,
        bytes_accessed=moved + 2 * state_slots.shape[0] * N * D * states.dtype.itemsize,
    )


def _kernel(*refs, gated: bool, rows: int):
    scalars, refs = Scalars(*refs[:NUM_SCALARS]), refs[NUM_SCALARS:]
    x, dt, B, C, *refs = refs
    z, refs = (refs[0], refs[1:]) if gated else (None, refs)
    A, skip, dt_bias, _, out, pool, buffers, loads, stores, delta, weighted, B_wide, C_wide, partial = refs
    segments = Segments(scalars, pool, buffers, loads, stores)
    N, D = A.shape

    @_each_register(D)
    def _(g, d):
        step = dt[:, d].astype(jnp.float32) + dt_bias[:, d]
        step = jnp.maximum(step, 0) + jnp.log1p(jnp.exp(-jnp.abs(step)))  # softplus
        delta[g] = step
        weighted[g] = step * x[:, d].astype(jnp.float32)

    _spread(B, B_wide)
    _spread(C, C_wide)

    def compute(begin, end, first, state):
        del first
        for first_register in range(0, D // LANES, BLOCK_REGISTERS):
            block = range(first_register, min(first_register + BLOCK_REGISTERS, D // LANES))
            places = [(g, n) for g in block for n in range(0, N, SUBLANES)]
            at = lambda g, n: (slice(n, n + SUBLANES), slice(g * LANES, (g + 1) * LANES))

            def row(t, h, block=block, places=places, at=at):
                h = dict(zip(places, h, strict=True))
                for g in block:
                    step, taken = (jnp.broadcast_to(a[g, pl.ds(t, 1)], (SUBLANES, LANES)) for a in (delta, weighted))
                    terms = []
                    for n in range(0, N, SUBLANES):
                        some = slice(n, n + SUBLANES)
                        h[g, n] = jnp.exp2(step * A[at(g, n)]) * h[g, n] + B_wide[t, some] * taken
                        terms.append(h[g, n] * C_wide[t, some])
                    partial[g, pl.ds(pl.multiple_of(t * SUBLANES, SUBLANES), SUBLANES)] = sum(terms[1:], terms[0])
                return tuple(h.values())

            def several(i, h, row=row):
                for t in range(UNROLL):
                    h = row(begin + i * UNROLL + t, h)
                return h

            turns = jax.lax.div(end - begin, UNROLL)
            h = jax.lax.fori_loop(0, turns, several, tuple(state[at(g, n)] for g, n in places))
            h = jax.lax.fori_loop(begin + turns * UNROLL, end, row, h)
            for (g, n), tile in zip(places, h, strict=True):
                state[at(g, n)] = tile

    segments.run(rows, compute)

    live = segments.num_rows - pl.program_id(0) * rows
    is_live = jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0) < live

    @_each_register(D)
    def _(g, d):
        y = sum(partial[g, pl.ds(n, rows, stride=SUBLANES)] for n in range(SUBLANES))
        y = y + skip[:, d] * x[:, d].astype(jnp.float32)
        if z is not None:
            gate = z[:, d].astype(jnp.float32)
            y = y * gate * (0.5 + 0.5 * jnp.tanh(0.5 * gate))  # silu
        out[:, d] = jnp.where(is_live, y, 0.0).astype(out.dtype)


def _each_register(channels: int):
    """Calls the function that it decorates with each number of `LANES` channels, and their slice."""

    def call(function):
        def turn(g, carry):
            function(g, pl.ds(pl.multiple_of(g * LANES, LANES), LANES))
            return carry

        jax.lax.fori_loop(0, channels // LANES, turn, 0)

    return call


def _spread(source, wide) -> None:
    """`wide[t, n, :] = source[t, n]` of refs `[rows, N]` and `[rows, N, LANES]`."""
    columns = jnp.transpose(source[...].astype(jnp.float32))
    for t in range(wide.shape[0]):
        wide[t] = jnp.broadcast_to(columns[:, t : t + 1], wide.shape[1:])
