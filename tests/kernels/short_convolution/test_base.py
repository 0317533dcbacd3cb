"""Every body of the short convolution against the formula, on all shapes of arg_specs.py."""

import functools

import bodies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from flexjax.kernels.recurrent import Batch
from flexjax.kernels.short_convolution import short_convolution, short_convolution_dense
from flexjax.kernels.short_convolution.arg_specs import ARG_SPECS, ArgSpec

BODIES = ["base", "xla"]
# The interpreter takes seconds a shape; these have rows alone and in chunks, over the edge of a block, and padding.
INTERPRETED = ["mamba_130m_mixed", "mamba2_2_7b_decode", "registers"]


call = functools.partial(bodies.call, short_convolution)


def formula(spec: ArgSpec):
    """Sequence by sequence in float64."""
    x, weight, bias, states, starts, slots, fresh = (a if a is None else np.asarray(a) for a in spec.arguments())
    out, new = np.zeros(x.shape), np.array(states)
    for b, rows in enumerate(spec.batch.rows):
        before = np.zeros_like(states[0]) if fresh[b] else states[slots[b]]
        window = np.concatenate([before, x[starts[b] : starts[b + 1]]])
        y = sum(window[w + 1 : w + 1 + rows].astype(float) * weight[w].astype(float) for w in range(spec.W))
        y = y if bias is None else y + bias.astype(float)
        out[starts[b] : starts[b + 1]] = y / (1 + np.exp(-y)) if spec.silu else y
        new[slots[b]] = window[rows:]
    return out, new


def check(spec: ArgSpec, result) -> None:
    (out, states), (want, want_states) = result, formula(spec)
    assert out.dtype == spec.dtype
    # float32: sums of four products of unit normals. bfloat16: half a unit of its 8 bits.
    tolerance = dict(atol=5e-6, rtol=1e-5) if spec.dtype == "float32" else dict(atol=1e-4, rtol=2**-8)
    np.testing.assert_allclose(np.asarray(out, np.float64), want, **tolerance)
    np.testing.assert_array_equal(states, want_states)


@pytest.mark.parametrize("name", ARG_SPECS)
@pytest.mark.parametrize("body", BODIES)
def test_equals_formula(body: str, name: str):
    check(ARG_SPECS[name], call(ARG_SPECS[name], body))


@pytest.mark.parametrize("name", INTERPRETED)
def test_the_tpu_body_equals_formula_in_the_interpreter(name: str):
    spec = ARG_SPECS[name]
    with pltpu.force_tpu_interpret_mode():
        check(spec, short_convolution(*spec.arguments(), body="pallas_tpu", **spec.options))


@pytest.mark.parametrize("body", BODIES)
def test_what_belongs_to_nobody_may_be_nan(body: str):
    spec = ARG_SPECS["mamba_130m_mixed"]
    x, weight, bias, states, starts, slots, fresh = spec.arguments()
    read = np.isin(
        np.arange(spec.batch.num_slots), np.asarray(slots)[: len(spec.batch.rows)][~np.array(spec.batch.fresh)]
    )
    x = jnp.where((jnp.arange(len(x)) < starts[-1])[:, None], x, jnp.nan)
    spoiled = jnp.where(read[:, None, None], states, jnp.nan)
    out, after = call(spec, body, (x, weight, bias, spoiled, starts, slots, fresh))
    want, want_after = call(spec, body)
    np.testing.assert_array_equal(out, want)
    written = np.asarray(slots)[: len(spec.batch.rows)]
    np.testing.assert_array_equal(after[written], want_after[written])


@pytest.mark.parametrize("body", BODIES)
def test_chunked_equals_whole(body: str):
    spec = ArgSpec(D=16, batch=Batch((12,)))
    x, weight, bias, states, _, slots, fresh = spec.arguments()
    whole, want = call(spec, body)
    outs, done = [], 0
    for rows in (2, 1, 9):
        part = dict(silu=True, max_query_len=rows)
        starts = jnp.array([0, rows], jnp.int32)
        arguments = (x[done : done + rows], weight, bias, states, starts, slots, fresh & (done == 0))
        out, states = bodies.jitted(short_convolution, body, **part)(*arguments)
        outs, done = [*outs, out], done + rows
    np.testing.assert_allclose(np.concatenate(outs), whole, atol=1e-6)
    np.testing.assert_array_equal(states, want)


@pytest.mark.parametrize("body", BODIES)
def test_dense_equals_ragged(body: str):
    spec = ArgSpec(D=16, batch=Batch((7, 7, 7), goes_on=(True, True, True)))
    x, weight, bias, states, _, slots, _ = spec.arguments()
    want, want_states = call(spec, body)
    out, last = short_convolution_dense(x.reshape(3, 7, 16), weight, bias, states[slots], body=body)
    np.testing.assert_allclose(out.reshape(21, 16), want, atol=1e-6)
    np.testing.assert_array_equal(last, want_states[slots])


def test_gradients_of_the_dense_form_are_the_formulas():
    spec = ArgSpec(D=8, batch=Batch((6, 6)))
    x, weight, bias, states, *_ = spec.arguments()

    def loss(body, x, weight, bias, state):
        out, last = short_convolution_dense(x.reshape(2, 6, 8), weight, bias, state, body=body)
        return jnp.sum(jnp.sin(out)) + jnp.sum(last**2)

    gradients = [
        jax.jit(jax.grad(functools.partial(loss, body), argnums=(0, 1, 2, 3)))(x, weight, bias, states[:2])
        for body in BODIES
    ]
    for got, want in zip(*gradients, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("max_query_len", [1, 5])
def test_donated_states_are_not_copied(max_query_len: int):
    spec = ArgSpec(D=64, batch=Batch((1,) * 4))
    x, weight, bias, states, *batch = spec.arguments()
    pool = jax.ShapeDtypeStruct((8192, *states.shape[1:]), states.dtype)
    run = lambda states, x: short_convolution(x, weight, bias, states, *batch, max_query_len=max_query_len, body="xla")
    memory = jax.jit(run, donate_argnums=0).lower(pool, x).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= pool.size * 4
    assert memory.temp_size_in_bytes <= 0.01 * pool.size * 4
