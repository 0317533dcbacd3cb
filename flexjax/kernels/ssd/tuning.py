"""Block sizes of SSD on TPUs."""

from flexjax.kernels.case import Case
from flexjax.kernels.recurrent_tpu import mean, per_turn, segments_of, waits
from flexjax.kernels.ssd import bench, pallas_tpu
from flexjax.kernels.ssd.arg_specs import ARG_SPECS as OTHERS
from flexjax.kernels.ssd.arg_specs import SERVING_SPECS as SHAPES
from flexjax.kernels.tuning import Block, Kernel, Loop, grid

BLOCKS = (Block("UNROLL", (4, 8, 12, 20), "Registers of channels computed in one turn of the loop, at the most."),)


def case(shape: str) -> Case:
    return bench.case(shape, (SHAPES | OTHERS)[shape], "pallas_tpu", calls=1)


def kernels(shape: str) -> tuple[Kernel, ...]:
    spec, rows = SHAPES[shape], pallas_tpu.BLOCK_ROWS
    blocks, segments = -(-spec.batch.num_rows // rows), segments_of(spec.batch, rows)
    registers = spec.D // pallas_tpu.LANES
    alone = mean(n == 1 for n in segments)
    # What is spread over heads is there for the whole block after its first row alone.
    spread = registers * min(alone, blocks / len(segments))
    row = (Loop(spread), *[Loop(alone * registers / spec.G)] * spec.G)
    turns = registers // spec.G // per_turn(registers // spec.G, pallas_tpu.UNROLL)
    chunk = [Loop((1 - alone) * turns)] * spec.G if turns > 1 else []  # One turn is no loop.
    of_segment = row if spec.batch.max_query_len == 1 else (*row, *chunk)
    loops = (Loop(registers), Loop(len(segments) / blocks, of_segment), waits(spec.batch, blocks), Loop(registers))
    return (Kernel("ssd", grid(blocks, *loops), spec.moved_bytes),)
