"""Block sizes of the gathered LoRA matmul on TPUs."""

import jax.numpy as jnp

from flexjax.kernels.case import Case
from flexjax.kernels.lora_matmul import bench, pallas_tpu
from flexjax.kernels.lora_matmul.arg_specs import ARG_SPECS as OTHERS
from flexjax.kernels.lora_matmul.arg_specs import SERVING_SPECS as SHAPES
from flexjax.kernels.lora_matmul.pallas_tpu import block_of
from flexjax.kernels.tuning import Block, Kernel, grid

BLOCKS = (
    Block("BLOCK_D", (1024, 2048, 8192), "Summed elements of the first product at a time."),
    Block("BLOCK_F", (512, 1024, 4096), "Columns of the second product at a time."),
)


def case(shape: str) -> Case:
    return bench.case(shape, (SHAPES | OTHERS)[shape], "pallas_tpu", calls=1)


def kernels(shape: str) -> tuple[Kernel, ...]:
    spec = SHAPES[shape]
    itemsize, used = jnp.dtype(spec.dtype).itemsize, min(spec.A, spec.T)
    groups = -(-used // max(1, pallas_tpu.LANES // spec.R))
    shrink = spec.D // block_of(spec.D, pallas_tpu.BLOCK_D, spec.T * itemsize)
    expand = spec.F // block_of(spec.F, pallas_tpu.BLOCK_F, spec.T * 4)
    adapters = spec.adapters_used * spec.R * itemsize
    return (
        Kernel("lora_shrink", grid(groups * shrink), adapters * spec.D + spec.T * spec.D * itemsize),
        Kernel("lora_expand", grid(groups * expand), adapters * spec.F + 2 * spec.T * spec.F * 4),
    )
