"""Packed weights: every instruction set and every fold against plain JAX, and rows that do not see each other."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sanitizers

from flexjax import kernels
from flexjax.kernels.matmul import base, cpu, pack, pack_gated, packed_matmul, packs
from flexjax.kernels.matmul.arg_specs import ARG_SPECS, INT8, ArgSpec

pytestmark = pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")
ODD = [(1, 1, 1), (3, 5, 33), (17, 65, 31), (33, 63, 70), (50, 129, 16)]  # T, D, F
SPECS = {n: s for n, s in ARG_SPECS.items() if s.weight_dtype in cpu.FORMATS}


@functools.cache
def packed(spec: ArgSpec):
    x, values, scale = spec.arguments()
    return x, pack(values, scale)


@functools.cache
def jitted(**options):
    return jax.jit(functools.partial(cpu.packed_matmul, **options))


@functools.cache
def formula(spec: ArgSpec) -> tuple[np.ndarray, np.ndarray]:
    """The result, and the sum of the magnitudes of its products, on which rounding errors depend."""
    x, values, scale = spec.arguments()
    result = jax.jit(functools.partial(base.matmul, **spec.options))(x, values, scale)
    wide = jnp.abs(values.astype(jnp.float32))
    sums = base.matmul(jnp.abs(x), wide, scale)  # Also of rounded rows, nearly.
    return np.asarray(result), np.asarray(sums)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("instruction_set", cpu.INSTRUCTION_SETS)
def test_every_instruction_set_equals_the_formula(instruction_set: str, name: str):
    spec = SPECS[name]
    got = jitted(instruction_set=instruction_set, **spec.options)(*packed(spec))
    want, magnitude = formula(spec)
    if spec.activation_dtype == "int8" and spec.weight_dtype == "int8":
        np.testing.assert_array_equal(got, want)  # The same integers, the same two products after them.
    else:
        assert np.all(np.abs(got - want) <= 4e-6 * magnitude)  # Another order of float32 sums.


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("instruction_set", ["avx512_bf16", "amx"])
def test_a_row_is_the_same_to_the_bit_alone_and_in_company(instruction_set: str, name: str):
    spec = SPECS[name]
    x, weight = packed(spec)
    call = jitted(instruction_set=instruction_set, **spec.options)
    together = np.asarray(call(x, weight))
    for rows in (1, 2, 3, 4, 17):
        some = x[spec.T // 2 :][:rows]
        np.testing.assert_array_equal(call(some, weight), together[spec.T // 2 :][:rows])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", ["none", "silu", "gelu_tanh"])
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512_bf16", "amx"])
@pytest.mark.parametrize("T", [2, 40])
def test_norm_bias_activation_and_residual_are_folded_in(T: int, instruction_set: str, activation: str, dtype: str):
    spec = INT8(T, 75, 37, dtype=dtype)
    x, values, scale = spec.arguments()
    rng = np.random.default_rng(1)
    norm, bias = (jnp.asarray(rng.standard_normal(n), jnp.float32) for n in (75, 37))
    residual = jnp.asarray(rng.standard_normal((T, 37)), dtype)
    got = jitted(activation=activation, eps=0.1, out_dtype=jnp.dtype(dtype), instruction_set=instruction_set)(
        x, pack(values, scale, bias), norm=norm, residual=residual
    )
    wide = x.astype(jnp.float32)
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=1, keepdims=True) + 0.1)
    rows = (wide * factor * jnp.broadcast_to(norm, wide.shape)).astype(dtype)
    y = base.matmul(rows, values, scale) + jnp.broadcast_to(bias, (T, 37))
    act = {"none": lambda y: y, "silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}
    want = act[activation](y) + residual.astype(jnp.float32)
    assert got.dtype == dtype
    # A normed bfloat16 may fall to the neighbour of what JAX rounds to: two units of its 8 bits in all.
    atol, rtol = (3e-5, 1e-5) if dtype == "float32" else (3e-2, 2**-7)
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=atol, rtol=rtol)


@pytest.mark.parametrize("F", [48, 37])
def test_gates_multiply_the_values_beside_them(F: int):
    spec = ArgSpec(5, 64, F)
    x, gate, _ = spec.arguments(1)
    _, up, _ = spec.arguments(2)
    weight = pack_gated((gate, None, np.ones(F)), (up, None, np.zeros(F)))
    got = packed_matmul(x, weight, activation="silu")
    want = jax.nn.silu(base.matmul(x, gate, None) + 1) * base.matmul(x, up, None)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_what_is_not_built_is_refused():
    with pytest.raises(NotImplementedError, match="values are float8_e4m3fn; float32, bfloat16, int8, int4 are built"):
        pack(jnp.ones((4, 4), jnp.float8_e4m3fn))
    with pytest.raises(NotImplementedError, match=r"scale of int8 values \[4, 4\] is \[2, 4\]; one an output channel"):
        pack(jnp.ones((4, 4), jnp.int8), jnp.ones((2, 4)))
    x, weight = packed(SPECS["bfloat16_odd_sizes"])
    with pytest.raises(NotImplementedError, match="rows in int8 are built for int8 and int4 weights"):
        packed_matmul(x, weight, activation_dtype="int8")
    with pytest.raises(NotImplementedError, match="x is float16"):
        packed_matmul(x.astype(jnp.float16), weight)


def test_a_weight_of_other_rows_is_refused_at_run_time():
    x, weight = packed(SPECS["bfloat16_odd_sizes"])
    with pytest.raises(jax.errors.JaxRuntimeError, match="bytes of the weight has 12288, and must have 20480"):
        jax.block_until_ready(packed_matmul(jnp.concatenate([x, x], axis=1), weight))


def test_without_the_library_plain_jax_serves_and_the_record_says_so(monkeypatch: pytest.MonkeyPatch):
    kernels.forget()
    assert packs("float32")
    assert kernels.bodies_used()["matmul"] == (kernels.Choice("cpu"),)
    monkeypatch.setattr(cpu, "LIBRARY", cpu.LIBRARY.with_name("_missing.so"))
    kernels.forget()
    assert not packs("float32")
    (choice,) = kernels.bodies_used()["matmul"]
    assert choice.body == "xla" and "not built" in choice.passed_over[0][1]
    monkeypatch.undo()
    assert not packs("float16")
    with kernels.use_bodies(matmul="xla"):
        assert not packs("float32")


def sanitized_lines() -> list[str]:
    shapes = [(s.T, s.D, s.F, s.weight_dtype, s.activation_dtype, s.dtype) for s in ARG_SPECS.values()]
    shapes = [s for s in shapes if s[3] in cpu.FORMATS]
    shapes += [(*odd, name, None, dtype) for odd in ODD for name in cpu.FORMATS for dtype in ("float32", "bfloat16")]
    shapes += [(*odd, name, "int8", "bfloat16") for odd in ODD for name in ("int8", "int4")]
    found = []
    for T, D, F, name, rows, dtype in shapes:
        for isa in range(len(cpu.INSTRUCTION_SETS)):
            for gated in (0, 1):
                F_ = F + F % 2
                form, wide = cpu.FORMATS.index(name), dtype == "float32"
                found.append(f"{T} {D} {F_} {form} {rows is not None:d} {wide:d} {gated} {isa}")
    return found


@pytest.mark.skipif(sanitizers.COMPILER is None, reason="needs a C++ compiler")
def test_nothing_is_read_or_written_out_of_place(tmp_path):
    """On all shapes, odd sizes and unaligned addresses, under the address and undefined-behaviour sanitizers."""
    flags = ["-fno-sanitize=alignment"]
    sanitizers.check(Path(__file__).with_name("sanitized.cc"), flags, sanitized_lines(), "products", tmp_path)
