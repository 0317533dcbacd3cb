"""Block sizes of the selective scan on TPUs."""

import jax.numpy as jnp

from flexjax.kernels.case import Case
from flexjax.kernels.recurrent_tpu import mean, segments_of, waits
from flexjax.kernels.selective_scan import bench, pallas_tpu
from flexjax.kernels.selective_scan.arg_specs import ARG_SPECS as OTHERS
from flexjax.kernels.selective_scan.arg_specs import SERVING_SPECS as SHAPES
from flexjax.kernels.tuning import Block, Kernel, Loop, grid

BLOCKS = (
    Block("BLOCK_ROWS", (32, 64, 128), "Rows at a time, at the most."),
    Block("BLOCK_REGISTERS", (4, 5, 10), "Registers of channels whose states are computed at a time."),
    Block("UNROLL", (4, 8, 32), "Rows computed in one turn of the loop."),
)


def case(shape: str) -> Case:
    return bench.case(shape, (SHAPES | OTHERS)[shape], "pallas_tpu", calls=1)


def kernels(shape: str) -> tuple[Kernel, ...]:
    spec = SHAPES[shape]
    rows = pallas_tpu.block_rows(spec.batch.num_rows, spec.D, jnp.dtype(spec.dtype).itemsize)
    blocks, segments = -(-spec.batch.num_rows // rows), segments_of(spec.batch, rows)
    registers, unroll = spec.D // pallas_tpu.LANES, pallas_tpu.UNROLL
    of_channels = (Loop(mean(n // unroll for n in segments)), Loop(mean(n % unroll for n in segments)))
    steps = -(-registers // pallas_tpu.BLOCK_REGISTERS)
    loops = (
        Loop(registers),
        Loop(len(segments) / blocks, of_channels * steps),
        waits(spec.batch, blocks),
        Loop(registers),
    )
    return (Kernel("selective_scan", grid(blocks, *loops), spec.moved_bytes),)
