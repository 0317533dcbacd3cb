"""Ops on a mesh give what they give without one, and the TPU's compiler moves nothing but what must be summed."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from devices import run_tests
from jax.sharding import Mesh

from flexjax.hardware import chips, program, topology
from flexjax.hardware.mesh import MeshConfig, make_mesh
from flexjax.hardware.sharding import SERVING, sharding
from flexjax.kernels.lora_matmul import AdapterRows, lora_matmul
from flexjax.kernels.recurrent import Batch
from flexjax.kernels.selective_scan import arg_specs as scans
from flexjax.kernels.selective_scan import selective_scan
from flexjax.kernels.short_convolution import arg_specs as convolutions
from flexjax.kernels.short_convolution import short_convolution
from flexjax.kernels.ssd import arg_specs as ssds
from flexjax.kernels.ssd import ssd

CHANNELS, PARAMETER, POOL, BATCH = ("rows", "inner"), (None, "inner"), ("slots", None, "inner"), ((None,),) * 3
SCAN = (CHANNELS, CHANNELS, PARAMETER, ("rows", None), ("rows", None), ("inner",), ("inner",), CHANNELS, POOL, *BATCH)
CONVOLUTION = (CHANNELS, PARAMETER, ("inner",), POOL, *BATCH)
SSD = (CHANNELS, ("rows", "heads"), ("heads",), ("rows", None, None), ("rows", None, None), ("heads",), POOL, *BATCH)
RAGGED = Batch((1, 9, 1, 1), goes_on=(True, True, False, True))
OPS: dict[str, tuple[Callable[..., Any], Any, Any]] = {
    "selective_scan": (selective_scan, scans.MAMBA_2_8B(batch=RAGGED, dtype="bfloat16"), SCAN),
    "short_convolution": (short_convolution, convolutions.MAMBA_2_8B(batch=RAGGED, dtype="bfloat16"), CONVOLUTION),
    "ssd": (ssd, ssds.MAMBA2_2_7B(batch=RAGGED, dtype="bfloat16"), SSD),
}


def test_on_eight_devices():
    run_tests(Path(__file__).with_name("over_axis_on_eight_devices.py"), count=8)


def eight() -> Mesh:
    chip = chips.find("v5e")
    if absent := topology.missing(chip):
        pytest.skip(absent)
    return make_mesh(MeshConfig(tensor=8), topology.devices(chip, "2x4"))


def compiled(mesh: Mesh, call: Callable[..., Any], arguments: Any, axes: Any, **options: Any) -> program.Program:
    abstract = jax.tree.map(
        lambda x, axes: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(axes, x.shape, mesh, SERVING)),
        arguments,
        axes,
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        made = jax.jit(call, **options).lower(*abstract).compile()
    return program.read(made.as_text() or "")


@pytest.mark.tpu
@pytest.mark.parametrize("op", OPS)
def test_a_tpu_runs_the_kernel_on_every_device_and_moves_nothing(op: str):
    call, spec, axes = OPS[op]
    arguments = jax.eval_shape(spec.arguments)
    made = compiled(eight(), functools.partial(call, **spec.options), arguments, axes)
    assert op in {each.label for each in made.ops}
    assert made.collectives == ()


@pytest.mark.tpu
@pytest.mark.parametrize(("axes", "summed"), [(("embed", "mlp"), 0), (("mlp", "embed"), 1)], ids=["outputs", "inputs"])
def test_an_adapter_adds_no_collective_to_its_projection(axes: tuple[str, str], summed: int):
    T, D, F, R, A = 8, 1024, 2048, 16, 4

    def layer(x, weight, a, b, adapter):
        y = jnp.einsum("TD,DF->TF", x, weight, preferred_element_type=jnp.float32)
        return lora_matmul(y, x, a, b, AdapterRows.of(adapter, A), axes=axes)

    bfloat16 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    arguments = (bfloat16((T, D)), bfloat16((D, F)), bfloat16((A, R, D)), bfloat16((A, R, F)))
    names = (("rows", axes[0]), axes, (None, None, axes[0]), (None, None, axes[1]), ("rows",))
    made = compiled(eight(), layer, (*arguments, jax.ShapeDtypeStruct((T,), jnp.int32)), names)
    assert {"lora_shrink", "lora_expand"} <= {each.label for each in made.ops}
    assert [each.opcode for each in made.collectives] == ["all-reduce"] * summed
    assert math.prod((T, F, 4)) * summed == sum(each.sent_bytes for each in made.collectives)
