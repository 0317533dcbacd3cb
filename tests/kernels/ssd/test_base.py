"""Every body of SSD against the formula, on all shapes of arg_specs.py."""

import functools

import bodies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from flexjax.kernels.recurrent import Batch
from flexjax.kernels.ssd import ssd, ssd_dense
from flexjax.kernels.ssd.arg_specs import ARG_SPECS, ArgSpec

# The interpreter takes seconds a shape; these have rows alone and in chunks, over the edge of a block, and padding.
INTERPRETED = ["mamba2_130m_mixed", "small", "groups"]


call = functools.partial(bodies.call, ssd)


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
    check(ARG_SPECS[name], call(ARG_SPECS[name], body))


@pytest.mark.parametrize("name", INTERPRETED)
def test_the_tpu_body_equals_formula_in_the_interpreter(name: str):
    spec = ARG_SPECS[name]
    with pltpu.force_tpu_interpret_mode():
        result = ssd(*spec.arguments(), body="pallas_tpu", **spec.options)
    check(spec, result, rounded=spec.dtype == "bfloat16")


@pytest.mark.parametrize("body", ["base", "xla"])
def test_what_belongs_to_nobody_may_be_nan(body: str):
    spec = ArgSpec(H=2, P=4, N=8, batch=Batch((1, 1, 6, 2, 9), padding_rows=3, padding_sequences=2))
    x, dt, A, B, C, skip, states, starts, slots, fresh = spec.arguments()
    live = jnp.arange(len(x)) < starts[-1]
    x, dt, B, C = (jnp.where(jnp.expand_dims(live, range(1, a.ndim)), a, jnp.nan) for a in (x, dt, B, C))
    owned = np.asarray(slots)[: len(spec.batch.rows)]
    read = np.isin(np.arange(len(states)), owned[~np.array(spec.batch.fresh)])
    spoiled = jnp.where(read[:, None, None], states, jnp.nan)
    out, after = call(spec, body, (x, dt, A, B, C, skip, spoiled, starts, slots, fresh))
    want, want_after = call(spec, body)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(after[owned], want_after[owned])


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
    spec = ArgSpec(H=2, P=4, N=8, batch=Batch((12,)))
    x, dt, A, B, C, skip, states, _, slots, fresh = spec.arguments()
    whole, want = call(spec, body)
    outs, done = [], 0
    for rows in (2, 1, 9):
        part = slice(done, done + rows)
        batch = (jnp.array([0, rows], jnp.int32), slots, fresh & (done == 0))
        arguments = (x[part], dt[part], A, B[part], C[part], skip, states)
        out, states = bodies.jitted(ssd, body, max_query_len=rows)(*arguments, *batch)
        outs, done = [*outs, out], done + rows
    np.testing.assert_allclose(np.concatenate(outs), whole, atol=1e-5)
    np.testing.assert_allclose(states, want, atol=1e-6)


@pytest.mark.parametrize("body", ["base", "xla"])
def test_dense_equals_ragged(body: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flexjax.kernels.ssd.xla.BLOCK_ROWS", 3)
    spec = ArgSpec(H=4, P=4, G=2, N=8, batch=Batch((7, 7), goes_on=(True, True)))
    x, dt, A, B, C, skip, states, _, slots, _ = spec.arguments()
    want, want_states = call(spec, "base")
    x, dt, B, C = (a.reshape(2, 7, *a.shape[1:]) for a in (x, dt, B, C))
    out, last = ssd_dense(x, dt, A, B, C, skip, states[slots], body=body)
    np.testing.assert_allclose(out.reshape(14, 16), want, atol=1e-5)
    np.testing.assert_allclose(last, want_states[slots], atol=1e-6)


def test_gradients_of_the_dense_form_are_the_formulas(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flexjax.kernels.ssd.xla.BLOCK_ROWS", 3)
    spec = ArgSpec(H=4, P=4, G=2, N=8, batch=Batch((5, 5)))
    x, dt, A, B, C, skip, *_ = spec.arguments()
    x, dt, B, C = (a.reshape(2, 5, *a.shape[1:]) for a in (x, dt, B, C))

    def loss(body, *arguments):
        out, last = ssd_dense(*arguments, body=body)
        return jnp.sum(jnp.sin(out)) + jnp.sum(last**2)

    arguments = (x, dt, A, B, C, skip)
    got, want = (jax.jit(jax.grad(functools.partial(loss, body), range(6)))(*arguments) for body in ("xla", "base"))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("max_query_len", [1, 5])
def test_donated_states_are_not_copied(max_query_len: int):
    spec = ArgSpec(H=4, P=16, N=4, batch=Batch((1,) * 4))
    *before, states, starts, slots, fresh = spec.arguments()
    pool = jax.ShapeDtypeStruct((8192, *states.shape[1:]), states.dtype)
    run = lambda states, before: ssd(*before, states, starts, slots, fresh, max_query_len=max_query_len)
    memory = jax.jit(run, donate_argnums=0).lower(pool, tuple(before)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= pool.size * 4
    assert memory.temp_size_in_bytes <= 0.01 * pool.size * 4
