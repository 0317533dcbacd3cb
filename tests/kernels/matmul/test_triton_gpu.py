"""The GPU body: its values interpreted on a CPU and, where there is one, on a GPU; what its compiler makes of it."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import triton_interpreter
from bodies import beside_the_formula, on_a_gpu
from described import GPUS, check_fits, compiled, triton_kernels

from flexjax.hardware import program
from flexjax.kernels.matmul import matmul
from flexjax.kernels.matmul.arg_specs import ARG_SPECS, GROUP, INT4, INT8, INT8_ROWS, ArgSpec

jax_triton = pytest.importorskip("jax_triton", reason="jax-triton is not installed (extra cuda)")

FLOAT8 = functools.partial(ArgSpec, weight_dtype="float8_e4m3fn")


def abstract(spec: ArgSpec) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The shapes of the arguments, which are too large to be made here."""
    groups = (spec.D // GROUP,) if spec.weight_dtype == "int4" else ()
    shapes = ((spec.T, spec.D), spec.dtype), ((spec.D, spec.F), spec.weight_dtype), ((*groups, spec.F), "float32")
    return tuple(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in shapes)


def test_values_by_the_interpreter():
    triton_interpreter.run_tests(Path(__file__).with_name("on_triton_interpreter.py"))


@on_a_gpu
@pytest.mark.parametrize("name", [n for n, s in ARG_SPECS.items() if s.weight_dtype == "int8" or n == "int4_decode_16"])
def test_values_on_a_gpu(name: str):
    spec = ARG_SPECS[name]
    ((got, want),) = beside_the_formula(matmul, spec)
    np.testing.assert_allclose(got, want, atol=2e-6 * spec.D**0.5)


@pytest.mark.parametrize("chip", GPUS)
@pytest.mark.parametrize(
    "spec",
    [INT8(8, 4096, 6144), INT4(8, 4096, 6144), INT4(64, 4096, 6144), INT8_ROWS(64, 4096, 6144)],
    ids=["int8", "int4", "int4_64_rows", "int8_rows"],
)
def test_compiles_into_registers_and_shared_memory(chip: str, spec: ArgSpec, monkeypatch: pytest.MonkeyPatch):
    call = functools.partial(matmul, **spec.options)
    check_fits(triton_kernels(monkeypatch, chip, call, *abstract(spec)), chip, ["_multiply"])


def test_int4_are_not_copied_before_they_are_read():
    spec = INT4(8, 4096, 6144)
    text = compiled("h100", matmul, *abstract(spec)).as_text()
    assert text is not None
    kernel, *others = sorted(program.read(text).ops, key=lambda op: -op.hbm_bytes)
    assert kernel.opcode == "kernel"
    assert sum(op.hbm_bytes for op in others) <= 0.25 * spec.weight_bytes  # The sums of D's parts.


def test_float8_is_refused_where_a_gpu_has_none():
    spec = FLOAT8(8, 256, 128)
    with pytest.raises(NotImplementedError, match="compute capability 8.0 has no float8"):
        compiled("a100", functools.partial(matmul, body="triton_gpu"), *abstract(spec))
    compiled("h100", functools.partial(matmul, body="triton_gpu"), *abstract(spec))
