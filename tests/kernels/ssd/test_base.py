"""Every body of SSD against the formula, on all shapes of arg_specs.py."""

import functools

import bodies
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from recurrent_ops import RecurrentOp

from flexjax.kernels.recurrent import Batch
from flexjax.kernels.ssd import ssd, ssd_dense
from flexjax.kernels.ssd.arg_specs import ARG_SPECS, ArgSpec

# The interpreter takes seconds a shape; these have rows alone and in chunks, over the edge of a block, and padding.
INTERPRETED = ["mamba2_130m_mixed", "small", "groups"]
SSD = RecurrentOp(ssd, ssd_dense, of_rows=(0, 1, 3, 4))  # x, dt, B, C


@functools.cache
def formula(spec: ArgSpec):
    """Sequence by sequence and head by head in float64."""
    *rows, states, starts, slots, fresh = (np.asarray(a) for a in spec.arguments())
    x, dt, A, B, C, skip = (a.astype(np.float64) for a in rows)
    out, new = np.zeros(x.shape), np.array(states)
    for b in range(len(spec.batch.rows)):
        state = np.zeros(new[0].shape) if fresh[b] else states[slots[b]].astype(np.float64)
        for head in range(spec.H):
            d, g = slice(head * spec.P, (head + 1) * spec.P), head // (spec.H // spec.G)
            h = state[:, d]
            for t in range(starts[b], starts[b + 1]):
                h = np.exp(dt[t, head] * A[head]) * h + np.outer(B[t, g], dt[t, head] * x[t, d])
                out[t, d] = C[t, g] @ h + skip[head] * x[t, d]
            state[:, d] = h
        new[slots[b]] = state
    return out, new


def check(spec: ArgSpec, result, rounded: bool = False) -> None:
    (out, states), (want, want_states) = result, formula(spec)
    assert (out.dtype, states.dtype) == (spec.dtype, spec.state_dtype)
    # float32: sums over 128 products and more, up to 50. bfloat16: half a unit of its 8 bits; where factors are rounded
    # too, of the largest sum.
    tolerance = dict(atol=2e-4, rtol=1e-5) if spec.dtype == "float32" else dict(atol=1e-3, rtol=2**-8)
    if rounded:
        tolerance = dict(atol=2**-8 * np.abs(want).max())
    np.testing.assert_allclose(np.asarray(out, np.float64), want, **tolerance)
    tolerance = dict(atol=1e-5, rtol=1e-5) if spec.state_dtype == "float32" else dict(atol=1e-5, rtol=2**-7)
    if rounded:
        tolerance = dict(atol=2**-8 * np.abs(want_states.astype(float)).max())
    np.testing.assert_allclose(states.astype(jnp.float32), want_states.astype(np.float32), **tolerance)
    untouched = bodies.untouched(spec, states)
    np.testing.assert_array_equal(states[untouched], want_states[untouched])


@pytest.mark.parametrize("name", ARG_SPECS)
@pytest.mark.parametrize("body", ["base", "xla"])
def test_equals_formula(body: str, name: str):
    check(ARG_SPECS[name], bodies.call(ssd, ARG_SPECS[name], body))


@pytest.mark.parametrize("name", INTERPRETED)
def test_the_tpu_body_equals_formula_in_the_interpreter(name: str):
    spec = ARG_SPECS[name]
    with pltpu.force_tpu_interpret_mode():
        result = ssd(*spec.arguments(), body="pallas_tpu", **spec.options)
    check(spec, result, rounded=spec.dtype == "bfloat16")


@pytest.mark.parametrize("body", ["base", "xla"])
def test_what_belongs_to_nobody_may_be_nan(body: str):
    spec = ArgSpec(H=2, P=4, N=8, batch=Batch((1, 1, 6, 2, 9), padding_rows=3, padding_sequences=2))
    SSD.check_what_belongs_to_nobody_may_be_nan(spec, body)


def test_in_the_tpu_body_too_and_no_sequence_spoils_another():
    spec = ArgSpec(H=2, P=64, N=8, batch=Batch((1, 6, 1, 5), padding_rows=3, padding_sequences=1))
    x, dt, A, B, C, skip, states, starts, slots, fresh = spec.arguments()
    good = np.ones(len(x), bool)
    good[int(starts[1]) : int(starts[2])] = good[int(starts[-1]) :] = False  # The second sequence, and padding.
    spoiled = [jnp.where(jnp.expand_dims(good, range(1, a.ndim)), a, jnp.nan) for a in (x, dt, B, C)]
    with pltpu.force_tpu_interpret_mode():
        run = functools.partial(ssd, body="pallas_tpu", **spec.options)
        out, after = run(spoiled[0], spoiled[1], A, *spoiled[2:], skip, states, starts, slots, fresh)
        want, want_after = run(x, dt, A, B, C, skip, states, starts, slots, fresh)
    np.testing.assert_array_equal(out[good], want[good])
    others = np.asarray(slots)[[0, 2, 3]]
    np.testing.assert_array_equal(after[others], want_after[others])
    assert not np.any(np.asarray(out)[int(starts[-1]) :])


def test_a_row_alone_is_the_same_to_the_bit_in_every_batch_on_tpu():
    spec = ArgSpec(H=2, P=64, N=8, batch=Batch((1, 6, 1), goes_on=(True, True, True)))
    x, dt, A, B, C, skip, states, _, slots, _ = spec.arguments()
    with pltpu.force_tpu_interpret_mode():
        out, after = ssd(*spec.arguments(), body="pallas_tpu", **spec.options)
        last = [a[-1:] for a in (x, dt, B, C)]
        batch = (jnp.array([0, 1], jnp.int32), slots[2:], jnp.array([False]))
        run = functools.partial(ssd, max_query_len=1, body="pallas_tpu")
        alone, alone_after = run(last[0], last[1], A, *last[2:], skip, states, *batch)
    np.testing.assert_array_equal(alone[0], out[-1])
    np.testing.assert_array_equal(alone_after[slots[2]], after[slots[2]])


@pytest.mark.parametrize("body", ["base", "xla"])
def test_chunked_equals_whole(body: str):
    SSD.check_chunked_equals_whole(ArgSpec(H=2, P=4, N=8, batch=Batch((12,))), body, atol=1e-5, state_atol=1e-6)


@pytest.mark.parametrize("body", ["base", "xla"])
def test_dense_equals_ragged(body: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flexjax.kernels.ssd.xla.BLOCK_ROWS", 3)
    spec = ArgSpec(H=4, P=4, G=2, N=8, batch=Batch((7, 7), goes_on=(True, True)))
    SSD.check_dense_equals_ragged(spec, body, beside="base", atol=1e-5, state_atol=1e-6)


def test_gradients_of_the_dense_form_are_the_formulas(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flexjax.kernels.ssd.xla.BLOCK_ROWS", 3)
    spec = ArgSpec(H=4, P=4, G=2, N=8, batch=Batch((5, 5)))
    SSD.check_gradients_of_the_dense_form(spec, from_a_state=False, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("max_query_len", [1, 5])
def test_donated_states_are_not_copied(max_query_len: int):
    SSD.check_donated_states_are_not_copied(ArgSpec(H=4, P=16, N=4, batch=Batch((1,) * 4)), max_query_len)
