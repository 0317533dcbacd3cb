"""Every body of the selective scan against the formula, on all shapes of arg_specs.py."""

import functools

import bodies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from flexjax.kernels.recurrent import Batch
from flexjax.kernels.selective_scan import selective_scan, selective_scan_dense
from flexjax.kernels.selective_scan.arg_specs import ARG_SPECS, ArgSpec

# The interpreter takes seconds a shape; these have rows alone and in chunks, over the edge of a block, and padding.
INTERPRETED = ["mamba_130m_decode", "mamba_130m_mixed", "ungated"]


call = functools.partial(bodies.call, selective_scan)


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
    check(ARG_SPECS[name], call(ARG_SPECS[name], body))


@pytest.mark.parametrize("name", INTERPRETED)
def test_the_tpu_body_equals_formula_in_the_interpreter(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flexjax.kernels.selective_scan.pallas_tpu.BLOCK_ROWS", 64)
    spec = ARG_SPECS[name]
    with pltpu.force_tpu_interpret_mode():
        check(spec, selective_scan(*spec.arguments(), body="pallas_tpu", **spec.options))


@pytest.mark.parametrize("body", ["base", "xla"])
def test_what_belongs_to_nobody_may_be_nan(body: str):
    spec = ArgSpec(D=16, N=4, batch=Batch((1, 1, 6, 2, 9), padding_rows=3, padding_sequences=2))
    x, dt, A, B, C, skip, dt_bias, z, states, starts, slots, fresh = spec.arguments()
    live = jnp.arange(len(x)) < starts[-1]
    x, dt, B, C, z = (jnp.where(live[:, None], a, jnp.nan) for a in (x, dt, B, C, z))
    owned = np.asarray(slots)[: len(spec.batch.rows)]
    read = np.isin(np.arange(len(states)), owned[~np.array(spec.batch.fresh)])
    spoiled = jnp.where(read[:, None, None], states, jnp.nan)
    out, after = call(spec, body, (x, dt, A, B, C, skip, dt_bias, z, spoiled, starts, slots, fresh))
    want, want_after = call(spec, body)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(after[owned], want_after[owned])


@pytest.mark.parametrize("body", ["base", "xla"])
def test_chunked_equals_whole(body: str):
    spec = ArgSpec(D=16, N=4, batch=Batch((12,)))
    x, dt, A, B, C, skip, dt_bias, z, states, _, slots, fresh = spec.arguments()
    whole, want = call(spec, body)
    outs, done = [], 0
    for rows in (2, 1, 9):
        part = slice(done, done + rows)
        arguments = (x[part], dt[part], A, B[part], C[part], skip, dt_bias, z[part], states)
        batch = (jnp.array([0, rows], jnp.int32), slots, fresh & (done == 0))
        out, states = bodies.jitted(selective_scan, body, max_query_len=rows)(*arguments, *batch)
        outs, done = [*outs, out], done + rows
    np.testing.assert_allclose(np.concatenate(outs), whole, atol=1e-5)
    np.testing.assert_allclose(states, want, atol=1e-6)


@pytest.mark.parametrize("body", ["base", "xla"])
def test_dense_equals_ragged(body: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flexjax.kernels.selective_scan.xla.BLOCK_ROWS", 3)
    spec = ArgSpec(D=16, N=4, batch=Batch((7, 7), goes_on=(True, True)))
    x, dt, A, B, C, skip, dt_bias, z, states, _, slots, _ = spec.arguments()
    want, want_states = call(spec, body)
    x, dt, B, C, z = (a.reshape(2, 7, -1) for a in (x, dt, B, C, z))
    out, last = selective_scan_dense(x, dt, A, B, C, skip, dt_bias, z, states[slots], body=body)
    np.testing.assert_allclose(out.reshape(14, 16), want, atol=1e-5)
    np.testing.assert_allclose(last, want_states[slots], atol=1e-6)


def test_gradients_of_the_dense_form_are_the_formulas(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flexjax.kernels.selective_scan.xla.BLOCK_ROWS", 3)
    spec = ArgSpec(D=8, N=4, batch=Batch((5, 5)))
    x, dt, A, B, C, skip, dt_bias, z, *_ = spec.arguments()
    x, dt, B, C, z = (a.reshape(2, 5, -1) for a in (x, dt, B, C, z))

    def loss(body, *arguments):
        out, last = selective_scan_dense(*arguments, body=body)
        return jnp.sum(jnp.sin(out)) + jnp.sum(last**2)

    arguments = (x, dt, A, B, C, skip, dt_bias, z)
    got, want = (
        jax.jit(jax.grad(functools.partial(loss, body), argnums=range(8)))(*arguments) for body in ("xla", "base")
    )
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("max_query_len", [1, 5])
def test_donated_states_are_not_copied(max_query_len: int):
    spec = ArgSpec(D=64, N=4, batch=Batch((1,) * 4))
    *before, states, starts, slots, fresh = spec.arguments()
    pool = jax.ShapeDtypeStruct((8192, *states.shape[1:]), states.dtype)
    run = lambda states, before: selective_scan(*before, states, starts, slots, fresh, max_query_len=max_query_len)
    memory = jax.jit(run, donate_argnums=0).lower(pool, tuple(before)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= pool.size * 4
    assert memory.temp_size_in_bytes <= 0.01 * pool.size * 4
