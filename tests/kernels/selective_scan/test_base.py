"""Every body of the selective scan against the formula, on all shapes of arg_specs.py."""

import functools

import bodies
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from recurrent_ops import RecurrentOp

from flexjax.kernels.recurrent import Batch
from flexjax.kernels.selective_scan import selective_scan, selective_scan_dense
from flexjax.kernels.selective_scan.arg_specs import ARG_SPECS, ArgSpec

# The interpreter takes seconds a shape; these have rows alone and in chunks, over the edge of a block, and padding.
INTERPRETED = ["mamba_130m_decode", "mamba_130m_mixed", "ungated"]
SCAN = RecurrentOp(selective_scan, selective_scan_dense, of_rows=(0, 1, 3, 4, 7))  # x, dt, B, C, z


@functools.cache
def formula(spec: ArgSpec):
    """Sequence by sequence in float64."""
    arguments = [a if a is None else np.asarray(a) for a in spec.arguments()]
    *rows, states, starts, slots, fresh = arguments
    x, dt, A, B, C, skip, dt_bias, z = (a if a is None else a.astype(np.float64) for a in rows)
    out, new = np.zeros(x.shape), np.array(states)
    for b in range(len(spec.batch.rows)):
        h = np.zeros(A.shape) if fresh[b] else states[slots[b]].astype(np.float64)
        for t in range(starts[b], starts[b + 1]):
            delta = np.log1p(np.exp(dt[t] + dt_bias))
            h = np.exp(delta * A) * h + np.outer(B[t], delta * x[t])
            y = C[t] @ h + skip * x[t]
            out[t] = y if z is None else y * z[t] / (1 + np.exp(-z[t]))
        new[slots[b]] = h
    return out, new


def check(spec: ArgSpec, result) -> None:
    (out, states), (want, want_states) = result, formula(spec)
    assert (out.dtype, states.dtype) == (spec.dtype, spec.state_dtype)
    # float32: exponentials, and sums over 16 products up to 50. bfloat16: half a unit of its 8 bits.
    tolerance = dict(atol=5e-5, rtol=1e-5) if spec.dtype == "float32" else dict(atol=1e-3, rtol=2**-8)
    np.testing.assert_allclose(np.asarray(out, np.float64), want, **tolerance)
    tolerance = dict(atol=1e-5, rtol=1e-5) if spec.state_dtype == "float32" else dict(atol=1e-5, rtol=2**-7)
    np.testing.assert_allclose(states.astype(jnp.float32), want_states.astype(np.float32), **tolerance)
    untouched = bodies.untouched(spec, states)
    np.testing.assert_array_equal(states[untouched], want_states[untouched])


@pytest.mark.parametrize("name", ARG_SPECS)
@pytest.mark.parametrize("body", ["base", "xla"])
def test_equals_formula(body: str, name: str):
    check(ARG_SPECS[name], bodies.call(selective_scan, ARG_SPECS[name], body))


@pytest.mark.parametrize("name", INTERPRETED)
def test_the_tpu_body_equals_formula_in_the_interpreter(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flexjax.kernels.selective_scan.pallas_tpu.BLOCK_ROWS", 64)
    spec = ARG_SPECS[name]
    with pltpu.force_tpu_interpret_mode():
        check(spec, selective_scan(*spec.arguments(), body="pallas_tpu", **spec.options))


@pytest.mark.parametrize("body", ["base", "xla"])
def test_what_belongs_to_nobody_may_be_nan(body: str):
    spec = ArgSpec(D=16, N=4, batch=Batch((1, 1, 6, 2, 9), padding_rows=3, padding_sequences=2))
    SCAN.check_what_belongs_to_nobody_may_be_nan(spec, body)


@pytest.mark.parametrize("body", ["base", "xla"])
def test_chunked_equals_whole(body: str):
    SCAN.check_chunked_equals_whole(ArgSpec(D=16, N=4, batch=Batch((12,))), body, atol=1e-5, state_atol=1e-6)


@pytest.mark.parametrize("body", ["base", "xla"])
def test_dense_equals_ragged(body: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flexjax.kernels.selective_scan.xla.BLOCK_ROWS", 3)
    spec = ArgSpec(D=16, N=4, batch=Batch((7, 7), goes_on=(True, True)))
    SCAN.check_dense_equals_ragged(spec, body, atol=1e-5, state_atol=1e-6)


def test_gradients_of_the_dense_form_are_the_formulas(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flexjax.kernels.selective_scan.xla.BLOCK_ROWS", 3)
    spec = ArgSpec(D=8, N=4, batch=Batch((5, 5)))
    SCAN.check_gradients_of_the_dense_form(spec, from_a_state=False, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("max_query_len", [1, 5])
def test_donated_states_are_not_copied(max_query_len: int):
    SCAN.check_donated_states_are_not_copied(ArgSpec(D=64, N=4, batch=Batch((1,) * 4)), max_query_len)
