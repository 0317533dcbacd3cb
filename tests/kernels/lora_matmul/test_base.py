"""Every body of the gathered LoRA matmul that runs here against the formula, on all shapes of arg_specs.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from flexjax import kernels
from flexjax.kernels.lora_matmul import AdapterRows, api, lora_matmul
from flexjax.kernels.lora_matmul.arg_specs import ARG_SPECS, NONE, ArgSpec

BODIES = ["base", "xla", "pallas_tpu"]  # The last interpreted.


@functools.cache
def formula(spec: ArgSpec) -> np.ndarray:
    """Row by row in float64, but for the rounding between the two products."""
    y, x, a, b, _ = (np.asarray(each, np.float64) if i < 4 else each for i, each in enumerate(spec.arguments()))
    out, adapters = y.copy(), np.repeat([i for i, _ in spec.rows], [count for _, count in spec.rows])
    for t, i in enumerate(adapters):
        if i != NONE:
            h = np.asarray(jnp.asarray(a[i] @ x[t], jnp.float32).astype(spec.dtype), np.float64)
            out[t] += h @ b[i]
    return out


def check(spec: ArgSpec, got: jax.Array) -> None:
    assert got.dtype == jnp.float32
    # float32 sums. In bfloat16 one of them may lie so near the middle of two that it is rounded the other way.
    tolerance = 1e-5 if spec.dtype == "float32" else 2e-2
    np.testing.assert_allclose(got, formula(spec), atol=tolerance)
    assert np.mean(np.abs(got - formula(spec))) < 1e-4


@pytest.mark.parametrize("name", ARG_SPECS)
@pytest.mark.parametrize("body", BODIES)
def test_equals_formula(body: str, name: str):
    spec = ARG_SPECS[name]
    kernels.forget()
    with pltpu.force_tpu_interpret_mode():
        got = jax.jit(functools.partial(lora_matmul, body=body))(*spec.arguments())
    assert [choice.body for choice in kernels.bodies_used()["lora_matmul"]] == [body]
    check(spec, got)


@pytest.mark.parametrize("body", BODIES)
def test_rows_without_an_adapter_keep_their_bits(body: str):
    y, x, a, b, rows = ARG_SPECS["mixed"].arguments()
    with pltpu.force_tpu_interpret_mode():
        got = lora_matmul(y, x, a, b, rows, body=body)
    without = np.asarray(rows.adapter) < 0
    assert without.any()
    np.testing.assert_array_equal(np.asarray(got)[without], np.asarray(y)[without])


@pytest.mark.parametrize("body", BODIES)
def test_adapters_that_no_row_has_are_not_looked_at(body: str):
    y, x, a, b, rows = ARG_SPECS["mixed"].arguments()
    others = jnp.isin(jnp.arange(len(a)), rows.used, invert=True)[:, None, None]
    assert others.any()
    spoil = lambda weight: jnp.where(others, jnp.asarray(jnp.nan, weight.dtype), weight)
    with pltpu.force_tpu_interpret_mode():
        got = lora_matmul(y, x, spoil(a), spoil(b), rows, body=body)
        np.testing.assert_array_equal(got, lora_matmul(y, x, a, b, rows, body=body))


@pytest.mark.parametrize("body", BODIES)
def test_layers_side_by_side_give_what_one_layer_gives(body: str):
    y, x, a, b, rows = ARG_SPECS["rank_64"].arguments()
    pool = lambda weight: jnp.concatenate([0 * weight, weight, 2 * weight])
    with pltpu.force_tpu_interpret_mode():
        got = lora_matmul(y, x, pool(a), pool(b), rows.in_layer(1, len(a)), body=body)
        np.testing.assert_array_equal(got, lora_matmul(y, x, a, b, rows, body=body))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=jnp.ones((4, 8, 1))), r"y is \[T, F\], x \[T, D\]"),
        (dict(a=jnp.ones((2, 3, 9))), r"a must have shape \(2, 3, 8\) beside x \(4, 8\) and R=3; it has \(2, 3, 9\)"),
        (dict(rows=AdapterRows.of(jnp.zeros(5, jnp.int32), 2)), r"rows.slot must have shape \(4,\)"),
        (dict(y=jnp.ones((4, 6), jnp.bfloat16)), "y is float32; got float32, float32, float32 and bfloat16"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    call = dict(
        y=jnp.ones((4, 6)),
        x=jnp.ones((4, 8)),
        a=jnp.ones((2, 3, 8)),
        b=jnp.ones((2, 3, 6)),
        rows=AdapterRows.of(jnp.zeros(4, jnp.int32), 2),
    )
    with pytest.raises(ValueError, match=message):  # Past the shape types, which only tests check.
        api._check(**(call | change))
