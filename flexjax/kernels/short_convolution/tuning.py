"""Block sizes of the short convolution on TPUs."""

from flexjax.kernels.case import Case
from flexjax.kernels.recurrent_tpu import mean, per_turn, segments_of, waits
from flexjax.kernels.short_convolution import bench, pallas_tpu
from flexjax.kernels.short_convolution.arg_specs import ARG_SPECS as OTHERS
from flexjax.kernels.short_convolution.arg_specs import SERVING_SPECS as SHAPES
from flexjax.kernels.tuning import Block, Kernel, Loop, grid

BLOCKS = (
    Block("BLOCK_ROWS", (64, 256), "Rows at a time."),
    Block("UNROLL", (3, 7), "Registers of channels of a row alone in one turn of the loop, at the most."),
    Block("UNROLL_REGISTERS", (2, 7), "Registers of channels of many rows in one turn of the loop, at the most."),
)


def case(shape: str) -> Case:
    return bench.case(shape, (SHAPES | OTHERS)[shape], "pallas_tpu", calls=1)


def kernels(shape: str) -> tuple[Kernel, ...]:
    spec = SHAPES[shape]
    rows = pallas_tpu.block_rows(spec.batch.num_rows)
    blocks, segments = -(-spec.batch.num_rows // rows), segments_of(spec.batch, rows)
    registers, alone = spec.D // pallas_tpu.LANES, mean(n == 1 for n in segments)
    each_register = lambda share: Loop(share * registers / per_turn(registers, pallas_tpu.UNROLL_REGISTERS))
    row = Loop(alone * registers / per_turn(registers, pallas_tpu.UNROLL))
    of_segment = (row, each_register(1 - alone))
    loops = (each_register(1), Loop(len(segments) / blocks, of_segment), waits(spec.batch, blocks), each_register(1))
    return (Kernel("short_convolution", grid(blocks, *loops), spec.moved_bytes),)
