"""The C++ rotary cut: its instruction sets, its promises, and its memory."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import sanitizers

from flexjax import kernels
from flexjax.kernels.rotary import cpu, rotary
from flexjax.kernels.rotary.arg_specs import ARG_SPECS

pytestmark = pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")
ODD = [(1, 1, 1, 2), (17, 1, 1, 6), (33, 3, 2, 34)]  # T, N, K, H


@pytest.mark.parametrize("name", ["grouped_float32", "odd_half", "wide_head"])
@pytest.mark.parametrize("instruction_set", cpu.INSTRUCTION_SETS)
def test_every_instruction_set_agrees_with_xla(instruction_set: str, name: str):
    spec = ARG_SPECS[name]
    got = cpu.rotary(*spec.arguments(), instruction_set=instruction_set, **spec.options)
    rtol = 0.0 if spec.dtype == "float32" else 2**-7  # A unit of bfloat16's 8 bits.
    for one, other in zip(got, rotary(*spec.arguments(), body="xla", **spec.options), strict=True):
        np.testing.assert_allclose(np.float32(one), np.float32(other), atol=1e-6, rtol=rtol)


def test_a_row_is_the_same_alone_and_in_company():
    spec = ARG_SPECS["shipped_prefill_128"]
    x, cos, sin = spec.arguments()
    for row in (0, 15, 16, 127):
        alone = rotary(x[row : row + 1], cos[row : row + 1], sin[row : row + 1], body="cpu", **spec.options)
        for one, all_rows in zip(alone, rotary(x, cos, sin, body="cpu", **spec.options), strict=True):
            np.testing.assert_array_equal(one[0], all_rows[row])


def test_nan_stays_in_its_row_and_pair():
    spec = ARG_SPECS["odd_half"]
    x, cos, sin = spec.arguments()
    q, k, v = rotary(x.at[2, 1].set(jnp.nan), cos, sin, body="cpu", **spec.options)
    np.testing.assert_array_equal(np.argwhere(jnp.isnan(q)), [[2, 0, 1], [2, 0, 6]])
    assert not jnp.isnan(k).any() and not jnp.isnan(v).any()


def test_another_dtype_is_refused():
    spec = ARG_SPECS["odd_half"]
    with pytest.raises(NotImplementedError, match="float16 were asked for; float32 and bfloat16 are built"):
        rotary(*spec.arguments(), body="cpu", **{**spec.options, "dtype": "float16"})


@pytest.mark.skipif(sanitizers.COMPILER is None, reason="needs a C++ compiler")
def test_nothing_is_read_or_written_out_of_place(tmp_path):
    """On all shapes, odd sizes and unaligned addresses, under the address and undefined-behaviour sanitizers."""
    shapes = ODD + [(s.T, s.N, s.K, s.H) for s in ARG_SPECS.values()]
    sets = range(len(cpu.INSTRUCTION_SETS))
    work = [f"{T} {N} {K} {H} {wide} {isa}" for T, N, K, H in shapes for wide in (0, 1) for isa in sets]
    sanitizers.check(Path(__file__).with_name("sanitized.cc"), ["-fno-sanitize=alignment"], work, "cuts", tmp_path)


def test_without_the_library_xla_serves_and_the_record_says_so(monkeypatch: pytest.MonkeyPatch):
    kernels.forget()
    monkeypatch.setattr(cpu, "LIBRARY", cpu.LIBRARY.with_name("_missing.so"))
    rotary(*ARG_SPECS["odd_half"].arguments(), **ARG_SPECS["odd_half"].options)
    (choice,) = kernels.bodies_used()["rotary"]
    assert choice.body == "xla" and "not built" in choice.passed_over[0][1]
