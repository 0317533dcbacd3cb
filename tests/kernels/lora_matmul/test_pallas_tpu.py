"""What the TPU body asks of its arguments, and what the TPU's own compiler makes of it; its values: test_base.py."""

import jax
import pytest
from described import TPUS, compiled

from flexjax.hardware import aot, program
from flexjax.kernels.lora_matmul import pallas_tpu
from flexjax.kernels.lora_matmul.arg_specs import ARG_SPECS, SERVING_SPECS, ArgSpec


def abstract(spec: ArgSpec):
    return jax.eval_shape(spec.arguments)


@pytest.mark.tpu
@pytest.mark.parametrize("chip", TPUS)
@pytest.mark.parametrize("name", ["llama3_8b_decode_8", "llama3_8b_prefill"])
def test_compiles_and_reads_each_adapter_once(chip: str, name: str):
    spec = SERVING_SPECS[name]
    made = compiled(chip, pallas_tpu.lora_matmul, *abstract(spec), donate=0)
    ops = program.read(made.as_text()).ops
    kernels = [op.label.split(".")[0] for op in ops if op.opcode == "kernel"]
    assert kernels == ["lora_shrink", "lora_expand"]
    rows_in_and_out = spec.T * (spec.D * 2 + 2 * spec.F * 4)
    adapters = min(spec.A, spec.T) * spec.R * (spec.D + spec.F) * 2
    # Of the whole program, copies that XLA makes ahead of a kernel included; what it keeps on the chip does not move.
    assert adapters <= sum(op.turns * op.hbm_bytes for op in ops) <= adapters + rows_in_and_out
    hidden = spec.T * 8 * spec.R * 2  # Eight adapters fill the lanes.
    assert aot.footprint_of(made).temporaries <= hidden + 2**19


@pytest.mark.tpu
@pytest.mark.parametrize("name", ["shipped_decode_16", "shipped_float32"])
def test_compiles_where_sizes_are_no_multiples_of_lanes(name: str):
    compiled("v5e", pallas_tpu.lora_matmul, *abstract(ARG_SPECS[name]))


@pytest.mark.parametrize(
    ("size", "most", "bytes_each", "block"),
    [(4096, 4096, 32, 4096), (28672, 4096, 32, 4096), (14336, 2048, 64, 2048), (704, 128, 64, 704)]
    + [(4096, 4096, 2**14, 512), (4096, 4096, 2**30, 128), (384, 256, 4, 128)],
)
def test_blocks_are_whole_lanes_that_fit(size: int, most: int, bytes_each: int, block: int):
    assert pallas_tpu.block_of(size, most, bytes_each) == block


@pytest.mark.parametrize(("dtype", "tile"), [("bfloat16", 16), ("float32", 8)])
def test_ranks_fill_tiles(dtype: str, tile: int):
    y, x, a, b, rows = ArgSpec(D=128, F=128, R=12, A=2, rows=((0, 2),), dtype=dtype).arguments()
    with pytest.raises(NotImplementedError, match=f"rank 12 is no multiple of {tile}"):
        pallas_tpu.lora_matmul(y, x, a, b, rows)
