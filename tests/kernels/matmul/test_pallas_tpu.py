"""int4 weights on TPU: values by Pallas' interpreter, and what the TPU's own compiler makes of them and of XLA's."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from described import TPUS, compiled
from jax.experimental.pallas import tpu as pltpu

from flexjax.hardware import program
from flexjax.kernels.matmul import matmul, pallas_tpu
from flexjax.kernels.matmul.arg_specs import GROUP, INT4, INT8, INT8_ROWS, ArgSpec

SPECS = {
    "one_row": INT4(1, 768, 2048),
    "apart_in_two_steps": INT4(11, 512, 128),
    "most_rows_apart": INT4(32, 256, 256),
    "halves": INT4(33, 256, 640),
    "halves_in_two_steps": INT4(40, 512, 128),
    "several_blocks_of_rows": INT4(300, 256, 128),
    "depth_of_no_whole_tiles": INT4(40, 384, 128),
    "columns_of_no_whole_tiles": INT4(5, 128, 650),
}


@pytest.mark.parametrize("name", SPECS)
def test_equals_formula(name: str, monkeypatch: pytest.MonkeyPatch):
    if name.endswith("two_steps"):
        monkeypatch.setattr(pallas_tpu, "BLOCK_D", 256)
        monkeypatch.setattr(pallas_tpu, "BLOCK_D_MANY", 256)
    x, values, scale = SPECS[name].arguments()
    with pltpu.force_tpu_interpret_mode():
        got = np.asarray(matmul(x, values, scale, body="pallas_tpu"))
    rows = np.asarray(x.astype(jnp.float32), np.float64)
    weight = np.asarray(values.astype(jnp.float32), np.float64) * np.repeat(np.asarray(scale, np.float64), 32, axis=0)
    # As in test_base.py; two bfloat16 hold 16 bits of a weight.
    assert np.all(np.abs(got - rows @ weight) <= 4e-6 * (np.abs(rows) @ np.abs(weight)))


@pytest.mark.parametrize("rows", [5, 40])
def test_a_row_is_the_same_to_the_bit_whatever_the_others_are(rows: int):
    x, values, scale = INT4(rows, 256, 128).arguments()
    with pltpu.force_tpu_interpret_mode():
        together = pallas_tpu.matmul(x, values, scale)
        others = pallas_tpu.matmul(x.at[1:].set(1000), values, scale)
    np.testing.assert_array_equal(together[0], others[0])


@pytest.mark.parametrize("rows", [5, 40])
def test_of_a_stack_it_multiplies_with_the_layer_asked_for(rows: int):
    calls = [INT4(rows, 256, 128).arguments(seed) for seed in range(3)]
    x, (values, scale) = calls[0][0], (jnp.stack([call[i] for call in calls]) for i in (1, 2))
    with pltpu.force_tpu_interpret_mode():
        got = matmul(x, values, scale, layer=jnp.int32(2), body="pallas_tpu")
        want = matmul(x, *calls[2][1:], body="pallas_tpu")
    np.testing.assert_array_equal(got, want)


def abstract(spec: ArgSpec) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The shapes of the arguments, which are too large to be made here."""
    groups = (spec.D // GROUP,) if spec.weight_dtype == "int4" else ()
    shapes = ((spec.T, spec.D), spec.dtype), ((spec.D, spec.F), spec.weight_dtype), ((*groups, spec.F), "float32")
    return tuple(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in shapes)


def hbm_bytes(chip: str, spec: ArgSpec, body: str) -> tuple[int, jax.stages.Compiled]:
    call = functools.partial(matmul, body=body, **spec.options)
    made = compiled(chip, call, *abstract(spec))
    text = made.as_text()
    assert text is not None
    return program.read(text).hbm_bytes, made


@pytest.mark.tpu
@pytest.mark.parametrize("chip", TPUS)
@pytest.mark.parametrize(("D", "F"), [(4096, 6144), (14336, 4096)], ids=["qkv", "down"])
@pytest.mark.parametrize("rows", [8, 64])
def test_llama3_8b_reads_int4_once(chip: str, D: int, F: int, rows: int):
    spec = INT4(rows, D, F)
    read, made = hbm_bytes(chip, spec, "pallas_tpu")
    # The few rows are laid out once for each group; rows and results of 64 are a tenth of a small weight.
    assert read <= (1.1 if rows == 8 else 1.2) * spec.weight_bytes
    text = made.as_text()
    assert text is not None
    vmem = re.findall(r'used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"', text)
    assert max(map(int, vmem)) < 10 * 2**20


@pytest.mark.tpu
@pytest.mark.parametrize("spec", [INT8(8, 4096, 6144), INT8_ROWS(64, 4096, 6144)], ids=["int8", "int8_rows"])
def test_xla_itself_reads_int8_once(spec: ArgSpec):
    read, _ = hbm_bytes("v5e", spec, "xla")
    assert read <= 1.12 * spec.weight_bytes


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (INT8(4, 256, 128), "int8 values are XLA's to serve"),
        (INT4(4, 256, 128, dtype="float32"), "rows are multiplied in float32; bfloat16 is served"),
        (INT4(4, 256, 128, activation_dtype="int8"), "rows are multiplied in int8"),
        (INT4(4, 96, 128), "D=96 and F=128 in groups of 32; D in multiples of 128"),
    ],
)
def test_what_it_cannot_do_it_says(spec: ArgSpec, reason: str):
    with pytest.raises(NotImplementedError, match=reason):
        pallas_tpu.matmul(*spec.arguments(), **spec.options)
