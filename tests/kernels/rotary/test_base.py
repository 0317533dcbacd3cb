"""Every body of the rotary cut against the formula in float64, on all shapes of arg_specs.py."""

from typing import Any

import numpy as np
import pytest

from flexjax.kernels.rotary import cpu, rotary
from flexjax.kernels.rotary.arg_specs import ARG_SPECS, ArgSpec

BUILT = pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")
BODIES = ["xla", pytest.param("cpu", marks=BUILT)]


def formula(spec: ArgSpec):
    """As complex numbers: dimensions i and i + H/2 of a head are one, and an angle is a factor."""
    x, cos, sin = (np.asarray(a, np.float64) for a in spec.arguments())
    heads = x.reshape(spec.T, -1, 2, spec.H // 2)
    turned = (heads[:, :, 0] + 1j * heads[:, :, 1]) * (cos + 1j * sin)[:, None]
    turned = np.concatenate([turned.real, turned.imag], axis=-1)
    of_keys = slice(spec.N, spec.N + spec.K)
    return turned[:, : spec.N], turned[:, of_keys], heads[:, spec.N + spec.K :].reshape(spec.T, spec.K, spec.H)


def check(spec: ArgSpec, results) -> None:
    # Two products of unit normals, or half a unit of bfloat16's 8 bits.
    rtol = 0.0 if spec.dtype == "float32" else 2**-8
    for got, want in zip(results, formula(spec), strict=True):
        assert got.dtype == spec.dtype
        np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=1e-6, rtol=rtol)


@pytest.mark.parametrize("name", ARG_SPECS)
@pytest.mark.parametrize("body", BODIES)
def test_equals_formula(body: str, name: str):
    spec = ARG_SPECS[name]
    check(spec, rotary(*spec.arguments(), body=body, **spec.options))


@pytest.mark.parametrize(
    "wrong",
    [dict(num_heads=5), dict(num_kv_heads=2)],
    ids=["heads of queries", "heads of keys"],
)
def test_heads_that_do_not_fit_are_an_error_that_says_what_would(wrong: dict[str, Any]):
    spec = ARG_SPECS["odd_half"]
    with pytest.raises(ValueError, match=r"x must be \(5, \d+\).*got x \(5, 50\)"):
        rotary(*spec.arguments(), **{**spec.options, **wrong})


def test_what_is_not_float32_is_an_error():
    x, cos, sin = ARG_SPECS["odd_half"].arguments()
    with pytest.raises(ValueError, match="must be float32; got bfloat16"):
        rotary(x.astype("bfloat16"), cos, sin, **ARG_SPECS["odd_half"].options)
