"""SSD on TPUs: one pass over the rows, the state of a sequence in fast memory from its first to its last.

Rows of a sequence that has several in a block are computed together by matrix products (`_chunk`), a row alone by the
recurrence itself (`_row`): the products of a whole block would be wasted on it. Both go over the channels 128 at a
time, which are the lanes of a register and one or more whole heads. A figure of a head is spread over rows and lanes by
transposing a register row, or for rows alone by a product with ones (`_spread_heads`): lanes cannot be indexed.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from flexjax.kernels.recurrent_tpu import NUM_SCALARS, Scalars, Segments, per_turn, scalars_of

LANES, SUBLANES = 128, 8  # Of a vector register.
BLOCK_ROWS = LANES  # So that what is spread over lanes can be spread over rows by the same transpose.
UNROLL = 40  # Registers of channels computed in one turn of the loop, at the most.
VMEM_BYTES = 96 * 2**20  # Of 128 MiB; the rest is XLA's.


def ssd(
    x: Float[Array, "T D"],
    dt: Float[Array, "T H"],
    A: Float[Array, "H"],
    B: Float[Array, "T G N"],
    C: Float[Array, "T G N"],
    skip: Float[Array, "H"],
    states: Float[Array, "slots N D"],
    query_starts: Int[Array, "B+1"],
    state_slots: Int[Array, "B"],
    fresh: Bool[Array, "B"],
    *,
    max_query_len: int,
) -> tuple[Float[Array, "T D"], Float[Array, "slots N D"]]:
    """The contract of `api.py`, without gradients."""
    (T, D), (H,), (_, G, N) = x.shape, A.shape, B.shape
    _refuse(x, A, B, states)
    scalars = scalars_of(T, BLOCK_ROWS, query_starts, state_slots, fresh)

    by_row = lambda width: pl.BlockSpec((BLOCK_ROWS, width), lambda i, *_: (i, 0))
    whole = lambda width: pl.BlockSpec((1, width), lambda i, *_: (0, 0))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    heads = -(-H // LANES) * LANES
    per_head = lambda a: jnp.pad(a.astype(jnp.float32), ((0, 0), (0, heads - H)))
    inputs = (
        x,
        per_head(dt),
        B.reshape(T, G * N),
        C.reshape(T, G * N),
        per_head(A[None]),
        jnp.repeat(skip.astype(jnp.float32), D // H)[None],
    )
    call = pl.pallas_call(
        functools.partial(_kernel, num_groups=G, head_dim=D // H, decode_only=max_query_len == 1),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=NUM_SCALARS,
            grid=(pl.cdiv(T, BLOCK_ROWS),),
            in_specs=[by_row(D), by_row(heads), by_row(G * N), by_row(G * N), whole(heads), whole(D), anywhere],
            out_specs=[by_row(D), anywhere],
            scratch_shapes=[
                *Segments.scratch((N, D), states.dtype),
                *Scratch.shapes(D, heads),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(states.shape, states.dtype)],
        input_output_aliases={NUM_SCALARS + len(inputs): 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_BYTES),
        cost_estimate=_cost(x, dt, B, states, state_slots, max_query_len),
        name="ssd",
    )
    return call(*scalars, *inputs, states)


def _refuse(x: Array, A: Array, B: Array, states: Array) -> None:
    (_, D), (H,), (_, G, N) = x.shape, A.shape, B.shape
    if LANES % (D // H) or (D // G) % LANES:
        raise NotImplementedError(
            f"{G} groups of {H // G} heads of {D // H} channels; heads must divide {LANES}, the lanes of a register, "
            "and groups fill whole ones"
        )
    if N % SUBLANES or (N % LANES and G > 1):
        raise NotImplementedError(
            f"N={N} with {G} groups; N must be a multiple of {SUBLANES}, and of {LANES} with several groups"
        )
    if x.dtype not in (jnp.float32, jnp.bfloat16) or B.dtype != x.dtype or states.dtype != jnp.float32:
        raise NotImplementedError(
            f"x is {x.dtype.name}, B is {B.dtype.name} and states are {states.dtype.name}; both float32 or both "
            "bfloat16 are served, and states of float32"
        )


def _cost(x: Array, dt: Array, B: Array, states: Array, state_slots: Array, max_query_len: int) -> pl.CostEstimate:
    """Of every sequence's state read and written, and of whole blocks of rows unless all rows are alone."""
    (T, D), (_, N, _) = x.shape, states.shape
    within = 0 if max_query_len == 1 else BLOCK_ROWS
    return pl.CostEstimate(
        flops=2 * T * D * (2 * N + within),
        transcendentals=T * dt.shape[1] * max(within, 1),
        bytes_accessed=2 * (x.nbytes + B.nbytes + state_slots.shape[0] * N * D * states.dtype.itemsize) + dt.nbytes,
    )


class Scratch(NamedTuple):
    """Refs that hold what is computed once a block, or once a sequence in a block."""

    # [D / LANES, rows, LANES], so that a row can be indexed:
    x: Any  # zeros in padding,
    y: Any
    steps: Any  # dt of the head of each channel,
    decays: Any  # and its exp(dt * A), for rows alone;
    spread: Any  # [1] the block for which those two are there.
    decay_of_head: Any  # [heads, rows]: logarithm of the decay from the sequence's first row in the block.
    dt_of_head: Any  # [heads, rows]

    @staticmethod
    def shapes(channels: int, heads: int) -> tuple[Any, ...]:
        by_channel = pltpu.VMEM((channels // LANES, BLOCK_ROWS, LANES), jnp.float32)
        by_head = pltpu.VMEM((heads, BLOCK_ROWS), jnp.float32)
        return by_channel, by_channel, by_channel, by_channel, pltpu.SMEM((1,), jnp.int32), by_head, by_head


def _kernel(*refs: Any, num_groups: int, head_dim: int, decode_only: bool):
    scalars, refs = Scalars(*refs[:NUM_SCALARS]), refs[NUM_SCALARS:]
    x, dt, B, C, A, skip, _, out, pool, buffers, loads, stores, *others = refs
    segments, scratch = Segments(scalars, pool, buffers, loads, stores), Scratch(*others)
    D, N = x.shape[1], buffers.shape[1]
    registers = D // LANES // num_groups  # Of a group.
    block = pl.program_id(0)

    live = _iota((BLOCK_ROWS, 1), 0) < segments.num_rows - block * BLOCK_ROWS

    @_each_register(0, D // LANES)
    def _(lanes, register):
        scratch.x[register] = jnp.where(live, x[:, lanes].astype(jnp.float32), 0.0)
        scratch.y[register] = skip[:, lanes] * scratch.x[register]

    @pl.when(block == 0)
    def _():
        scratch.spread[0] = -1

    def row(t, state):
        @pl.when(scratch.spread[0] != block)
        def _():
            _spread_heads(dt, A, scratch, head_dim)
            scratch.spread[0] = block

        for g in range(num_groups):
            group = slice(g * N, (g + 1) * N)
            B_wide, C_wide = (_row_down_lanes(a, t, group) for a in (B, C))

            @_each_register(g * registers, (g + 1) * registers)
            def _(lanes, register, B_wide=B_wide, C_wide=C_wide):
                one = (register, pl.ds(t, 1))
                h = scratch.decays[one] * state[:, lanes] + B_wide * (scratch.steps[one] * scratch.x[one])
                state[:, lanes] = h
                scratch.y[one] += jnp.sum(h * C_wide, axis=0, keepdims=True)

    def chunk(begin, end, state):
        of_rows = _iota((BLOCK_ROWS, 1), 0)
        mine = (of_rows >= begin) & (of_rows < end)
        steps = jnp.where(mine, dt[...], 0.0)
        i, j = _iota((BLOCK_ROWS, BLOCK_ROWS), 0), _iota((BLOCK_ROWS, BLOCK_ROWS), 1)
        causal = (j <= i).astype(jnp.float32)
        scratch.decay_of_head[...] = jnp.transpose(_product(causal, steps * A[...]))
        scratch.dt_of_head[...] = jnp.transpose(steps)
        seen = (j <= i) & (j >= begin) & (i < end)
        first_lane = _iota((1, LANES), 1)

        for g in range(num_groups):
            group = slice(g * N, (g + 1) * N)
            B_g, C_g = (jnp.where(mine, a[:, group].astype(jnp.float32), 0.0).astype(x.dtype) for a in (B, C))
            scores = _product(C_g, B_g, transposed=True)
            B_down = jnp.transpose(B_g.astype(jnp.float32)).astype(x.dtype)

            @_each_register(g * registers, (g + 1) * registers, unroll=per_turn(registers, UNROLL))
            def _(lanes, register, scores=scores, B_down=B_down, C_g=C_g):
                here = jnp.where(mine, scratch.x[register], 0.0)
                rounded = here.astype(x.dtype)
                into = jnp.zeros((BLOCK_ROWS, LANES), jnp.float32)
                left, within, of_heads = [], [], []
                for k in range(LANES // head_dim):
                    head = pl.ds(register * (LANES // head_dim) + k, 1)
                    decay, step = scratch.decay_of_head[head], scratch.dt_of_head[head]
                    decay_down = jnp.transpose(jnp.broadcast_to(decay, (LANES, BLOCK_ROWS)))
                    since = jnp.exp(jnp.where(seen, decay_down - decay, -jnp.inf))
                    within.append((since * scores * step).astype(x.dtype))
                    of_heads.append((first_lane >= k * head_dim) & (first_lane < (k + 1) * head_dim))
                    into = jnp.where(of_heads[k], decay_down, into)
                    left.append(step * jnp.exp(decay[:, BLOCK_ROWS - 1 :] - decay))
                # One product for the heads of the register, each right in its own lanes.
                parts = _product(jnp.concatenate(within), rounded)
                y = parts[:BLOCK_ROWS]
                for k in range(1, len(of_heads)):
                    y = jnp.where(of_heads[k], parts[k * BLOCK_ROWS : (k + 1) * BLOCK_ROWS], y)
                into = jnp.exp(into)
                h = state[:, lanes]
                y = y + into * _product(C_g, h.astype(x.dtype))
                scratch.y[register] += jnp.where(mine, y, 0.0)
                left = jnp.concatenate([jnp.broadcast_to(a, (head_dim, BLOCK_ROWS)) for a in left])
                added = _product(B_down, (here * jnp.transpose(left)).astype(x.dtype))
                state[:, lanes] = into[BLOCK_ROWS - 1 :] * h + added

    def compute(begin, end, first, state):
        del first
        if decode_only:
            row(begin, state)
        else:
            pl.when(end - begin == 1)(lambda: row(begin, state))
            pl.when(end - begin > 1)(lambda: chunk(begin, end, state))

    segments.run(BLOCK_ROWS, compute)

    @_each_register(0, D // LANES)
    def _(lanes, register):
        out[:, lanes] = scratch.y[register].astype(out.dtype)


def _iota(shape: tuple[int, ...], axis: int) -> Int[Array, "..."]:
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def _product(a: Float[Array, "I K"], b: Float[Array, "..."], transposed: bool = False) -> Float[Array, "I J"]:
    """a @ b, or a @ b.T; float32 in full, bfloat16 as it comes, sums in float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dims = (((1,), (1 if transposed else 0,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def _each_register(begin: int, end: int, unroll: int = 1):
    """Calls the function that it decorates with the lanes of each register of channels, and its number."""

    def call(function):
        def turn(register, carry):
            function(pl.ds(pl.multiple_of(register * LANES, LANES), LANES), register)
            return carry

        jax.lax.fori_loop(begin, end, turn, 0, unroll=unroll)

    return call


def _row_down_lanes(source: Any, t: Any, columns: slice) -> Float[Array, "N LANES"]:
    """Row t of a ref, written down every lane."""
    rows = _iota((BLOCK_ROWS, 1), 0)
    picked = jnp.where(rows == t, source[:, columns].astype(jnp.float32), 0.0)
    row = jnp.sum(picked, axis=0, keepdims=True)  # Of packed rows one cannot be indexed.
    return jnp.transpose(jnp.broadcast_to(row, (LANES, row.shape[1])))


def _spread_heads(dt: Any, A: Any, scratch: Scratch, head_dim: int) -> None:
    """`steps` and `decays` of every row of the block."""
    steps = jnp.where(jnp.isfinite(dt[...]), dt[...], 0.0)  # Past the last row stands anything.
    head, lane = _iota((steps.shape[1], LANES), 0), _iota((steps.shape[1], LANES), 1)

    @_each_register(0, scratch.steps.shape[0])
    def _(_, register):
        belongs = (head == register * (LANES // head_dim) + lane // head_dim).astype(jnp.float32)
        spread = _product(steps, belongs)
        scratch.steps[register] = spread
        scratch.decays[register] = jnp.exp(_product(steps * A[...], belongs))
