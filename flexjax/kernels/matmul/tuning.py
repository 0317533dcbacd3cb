"""Block sizes of the product with int4 weights on TPUs."""

from flexjax.kernels.case import Case
from flexjax.kernels.matmul import pallas_tpu
from flexjax.kernels.matmul.api import OP, matmul
from flexjax.kernels.matmul.arg_specs import ARG_SPECS, GROUP, INT4, ArgSpec
from flexjax.kernels.matmul.pallas_tpu import DEPTH, block_of
from flexjax.kernels.tuning import Block, Kernel, grid

BLOCKS = (
    Block("BLOCK_F", (256, 512, 2048), "Columns at a time."),
    Block("BLOCK_D", (1024, 2048), "Summed elements at a time, of few rows."),
    Block("BLOCK_D_MANY", (512, 1024, 2048), "Summed elements at a time, of many rows."),
    Block("BLOCK_ROWS", (128, 256), "Rows at a time, of many."),
    Block("APART_ROWS", (8, 16, 64), "Rows up to which groups are summed apart."),
)
SHAPES: dict[str, ArgSpec] = {f"llama3_8b_gate_up_{T}": INT4(T, 4096, 28672) for T in (8, 32, 64, 1024)}
OTHERS = {name: spec for name, spec in ARG_SPECS.items() if spec.weight_dtype == "int4"}


def case(shape: str) -> Case:
    spec = (SHAPES | OTHERS)[shape]

    def step(x, values, scale):
        y = matmul(x, values, scale, body="pallas_tpu", **spec.options)
        return x.at[0, 0].add((0 * y[0, 0]).astype(x.dtype))

    return Case(OP, shape, "pallas_tpu", spec.arguments, step, spec.weight_bytes, spec.operations, spec.dtype)


def kernels(shape: str) -> tuple[Kernel, ...]:
    spec = SHAPES[shape]
    apart, blocks = spec.T <= pallas_tpu.APART_ROWS, -(-spec.T // pallas_tpu.BLOCK_ROWS)
    if apart:
        blocks, block = 1, block_of(spec.D, pallas_tpu.BLOCK_D, 8 * GROUP)
    else:
        block = block_of(spec.D, pallas_tpu.BLOCK_D_MANY, 8 * GROUP)
    columns = block_of(spec.F, pallas_tpu.BLOCK_F, DEPTH)
    steps = blocks * (spec.F // columns) * (spec.D // block)
    return (Kernel("int4_matmul", grid(steps), blocks * spec.weight_bytes),)
