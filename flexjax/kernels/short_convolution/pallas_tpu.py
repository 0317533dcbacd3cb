"""The short causal convolution on TPUs: one pass over the rows, in place on the states.

A block of rows is convolved as if all were of one sequence. Then the first W - 1 rows of each sequence in the block are
done again with the inputs before them, which its state has become at the end of the block before.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from flexjax.kernels.recurrent_tpu import NUM_SCALARS, Scalars, Segments, per_turn, scalars_of

BLOCK_ROWS = 128
UNROLL = 14  # Registers of channels of a row alone in one turn of the loop,
UNROLL_REGISTERS = 14  # and of many rows, at the most.
VMEM_BYTES = 64 * 2**20  # Of 128 MiB; the rest is XLA's.
LANES, SUBLANES = 128, 8  # Of a vector register.


def short_convolution(
    x: Float[Array, "T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None,
    states: Float[Array, "slots W D"],
    query_starts: Int[Array, "B+1"],
    state_slots: Int[Array, "B"],
    fresh: Bool[Array, "B"],
    *,
    silu: bool,
    max_query_len: int,
) -> tuple[Float[Array, "T D"], Float[Array, "slots W D"]]:
    """The contract of `api.py`, without gradients."""
    del max_query_len  # Decoding rows are segments like others.
    (T, D), W = x.shape, weight.shape[0]
    _refuse(x, weight)
    rows = block_rows(T)
    scalars = scalars_of(T, rows, query_starts, state_slots, fresh)
    bias = jnp.zeros(D, jnp.float32) if bias is None else bias.astype(jnp.float32)
    by_row = pl.BlockSpec((rows, D), lambda i, *_: (i, 0))
    whole = lambda height: pl.BlockSpec((height, D), lambda i, *_: (0, 0))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    inputs = (x, weight.astype(jnp.float32), bias[None])
    call = pl.pallas_call(
        functools.partial(_kernel, silu=silu),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=NUM_SCALARS,
            grid=(pl.cdiv(T, rows),),
            in_specs=[by_row, whole(W), whole(1), anywhere],
            out_specs=[by_row, anywhere],
            scratch_shapes=[
                *Segments.scratch((W, D), states.dtype),
                # By register, so that a row can be indexed; with room on both sides, because whole windows are moved.
                pltpu.VMEM((D // LANES, SUBLANES + rows + SUBLANES, LANES), jnp.float32),
                pltpu.VMEM((D // LANES, rows + SUBLANES, LANES), jnp.float32),
                pltpu.VMEM((D // LANES, 2 * SUBLANES, LANES), jnp.float32),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(states.shape, states.dtype)],
        input_output_aliases={NUM_SCALARS + len(inputs): 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_BYTES),
        cost_estimate=_cost(x, weight, state_slots),
        name="short_convolution",
    )
    return call(*scalars, *inputs, states)


def block_rows(num_rows: int) -> int:
    """Rows at a time, of so many."""
    return min(BLOCK_ROWS, -(-num_rows // (2 * SUBLANES)) * 2 * SUBLANES)


def _refuse(x: Array, weight: Array) -> None:
    if x.shape[1] % LANES:
        raise NotImplementedError(f"{x.shape[1]} channels; a multiple of {LANES}, the lanes of a register, is served")
    if weight.shape[0] > SUBLANES:
        raise NotImplementedError(f"{weight.shape[0]} inputs are convolved; up to {SUBLANES} are served")
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"x is {x.dtype.name}; float32 and bfloat16 are served")


def _cost(x: Array, weight: Array, state_slots: Array) -> pl.CostEstimate:
    """Of every sequence's state read and written."""
    (T, D), W = x.shape, weight.shape[0]
    return pl.CostEstimate(
        flops=2 * T * D * W,
        transcendentals=T * D,
        bytes_accessed=2 * (T + state_slots.shape[0] * W) * D * x.dtype.itemsize,
    )


def _kernel(*refs: Any, silu: bool):
    scalars, refs = Scalars(*refs[:NUM_SCALARS]), refs[NUM_SCALARS:]
    x, weight, bias, _, out, pool, buffers, loads, stores, inputs, y, seam = refs
    segments = Segments(scalars, pool, buffers, loads, stores)
    (rows, D), W = x.shape, weight.shape[0]
    live = jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0) < segments.num_rows - pl.program_id(0) * rows
    convolved = lambda ref, register, lanes, first, count: sum(
        weight[w : w + 1, lanes] * ref[register, pl.ds(first + w, count)] for w in range(W)
    )

    def each_register(function):
        def turn(register, carry):
            function(register, pl.ds(pl.multiple_of(register * LANES, LANES), LANES))
            return carry

        jax.lax.fori_loop(0, D // LANES, turn, 0, unroll=per_turn(D // LANES, UNROLL_REGISTERS))

    @each_register
    def _(register, lanes):
        inputs[register, pl.ds(SUBLANES, rows)] = jnp.where(live, x[:, lanes].astype(jnp.float32), 0.0)
        y[register, :rows] = convolved(inputs, register, lanes, SUBLANES - W + 1, rows)

    group = per_turn(D // LANES, UNROLL)

    def row(begin, state):
        def turn(i, carry):
            # All read before any is written: what a row's number leads to is not known to be apart.
            places = [
                (i * group + k, pl.ds(pl.multiple_of((i * group + k) * LANES, LANES), LANES)) for k in range(group)
            ]
            windows = [
                jnp.concatenate([state[:, lanes].astype(jnp.float32)[1:], inputs[register, pl.ds(SUBLANES + begin, 1)]])
                for register, lanes in places
            ]
            results = [
                jnp.sum(weight[:, lanes] * window, axis=0, keepdims=True)
                for (_, lanes), window in zip(places, windows, strict=True)
            ]
            for (register, lanes), window, result in zip(places, windows, results, strict=True):
                y[register, pl.ds(begin, 1)] = result
                state[:, lanes] = window.astype(state.dtype)
            return carry

        jax.lax.fori_loop(0, D // LANES // group, turn, 0)

    def several(begin, end, state):
        @each_register
        def _(register, lanes):
            seam[register, :W] = state[:, lanes].astype(jnp.float32)
            seam[register, pl.ds(W, W)] = inputs[register, pl.ds(SUBLANES + begin, W)]
            # Rows past the end are of the next sequence, which writes them anew, or padding.
            y[register, pl.ds(begin, W - 1)] = convolved(seam, register, lanes, 1, W - 1)
            whole = inputs[register, pl.ds(SUBLANES + end - W, W)]
            part = seam[register, pl.ds(jnp.minimum(end - begin, W), W)]
            state[:, lanes] = jnp.where(end - begin >= W, whole, part).astype(state.dtype)

    def compute(begin, end, first, state):
        del first
        pl.when(end - begin == 1)(lambda: row(begin, state))
        pl.when(end - begin > 1)(lambda: several(begin, end, state))

    segments.run(rows, compute)

    @each_register
    def _(register, lanes):
        result = y[register, :rows] + bias[:, lanes]
        if silu:
            result = result * (0.5 + 0.5 * jnp.tanh(0.5 * result))
        out[:, lanes] = jnp.where(live, result, 0.0).astype(out.dtype)
