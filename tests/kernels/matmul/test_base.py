"""Every body of the quantised matmul against the formula, on all shapes of arg_specs.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexjax import kernels
from flexjax.kernels.matmul import api, matmul
from flexjax.kernels.matmul.arg_specs import ARG_SPECS, ArgSpec

BODIES = ["base", "xla"]


def call(spec: ArgSpec, body: str, arguments=None):
    """The op under jit; asserts that `body` is what was traced."""
    kernels.forget()
    result = jax.jit(functools.partial(matmul, body=body, **spec.options))(*(arguments or spec.arguments()))
    assert [choice.body for choice in kernels.bodies_used()["matmul"]] == [body]
    return np.asarray(result)


@functools.cache
def formula(spec: ArgSpec) -> tuple[np.ndarray, np.ndarray]:
    """In float64: the result, and for each of its sums that of the magnitudes, on which rounding errors depend."""
    x, values, scale = (None if a is None else np.asarray(a.astype(jnp.float32), np.float64) for a in spec.arguments())
    assert x is not None and values is not None
    if spec.activation_dtype == "int8":
        rows = np.asarray(x, np.float32)
        largest = np.abs(rows).max(axis=1, keepdims=True)
        x = np.round(rows * (np.float32(127) / largest)).astype(np.float64) * (largest.astype(np.float64) / 127)
    if scale is not None:
        groups = scale.reshape(-1, spec.F)
        values = values * np.repeat(groups, spec.D // len(groups), axis=0)
    return x @ values, np.abs(x) @ np.abs(values)


@pytest.mark.parametrize("name", ARG_SPECS)
@pytest.mark.parametrize("body", BODIES)
def test_equals_formula(body: str, name: str):
    spec = ARG_SPECS[name]
    got, (want, magnitude) = call(spec, body), formula(spec)
    assert got.dtype == np.float32
    # float32 sums of exact products: a unit of 24 bits at each of log2(D) to D steps, which cancel.
    assert np.all(np.abs(got - want) <= 4e-6 * magnitude)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ["int8_odd_sizes", "int4_odd_sizes"])
def test_of_a_stack_it_multiplies_with_the_layer_asked_for(body: str, name: str):
    x, values, scale = ARG_SPECS[name].arguments()
    assert scale is not None
    stack = jnp.stack([values, values[::-1]]), jnp.stack([scale, 2 * scale])
    got = matmul(x, *stack, layer=jnp.int32(1), body=body)
    np.testing.assert_array_equal(got, matmul(x, values[::-1], 2 * scale, body=body))


@pytest.mark.parametrize("body", BODIES)
def test_a_row_of_zeros_gives_zeros(body: str):
    spec = ARG_SPECS["int8_rows_odd_sizes"]
    x, values, scale = spec.arguments()
    got = call(spec, body, (x.at[2].set(0), values, scale))
    assert not got[2].any() and got[3].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=jnp.ones((4, 65))), r"x is \[T, D\] and values \[D, F\].*; got x \(4, 65\)"),
        (dict(scale=jnp.ones(9)), r"scale is \[F\] or \[G, F\].*\(9,\) beside.*D=64, F=8"),
        (dict(scale=jnp.ones((3, 8))), r"G groups that divide D evenly.*; it is \(3, 8\)"),
        (dict(scale=None), "Integer values need a scale"),
        (dict(activation_dtype="int4"), "activation_dtype is None, or with integer values 'int8'; got 'int4'"),
        (dict(values=jnp.ones((64, 8)), activation_dtype="int8"), "got 'int8' for float32"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    call: dict = dict(
        x=jnp.ones((4, 64)),
        values=jnp.ones((64, 8), jnp.int8),
        scale=jnp.ones(8),
        layer=None,
        activation_dtype=None,
        axes=None,
    )
    # Past the shape types, which only tests check.
    with pytest.raises(ValueError, match=message):
        api._check(**(call | change))
