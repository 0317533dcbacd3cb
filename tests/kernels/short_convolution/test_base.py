"""Every body of the short convolution against the formula, on all shapes of arg_specs.py."""

import bodies
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from recurrent_ops import RecurrentOp

from flexjax.kernels.recurrent import Batch
from flexjax.kernels.short_convolution import short_convolution, short_convolution_dense
from flexjax.kernels.short_convolution.arg_specs import ARG_SPECS, ArgSpec

BODIES = ["base", "xla"]
# The interpreter takes seconds a shape; these have rows alone and in chunks, over the edge of a block, and padding.
INTERPRETED = ["mamba_130m_mixed", "mamba2_2_7b_decode", "registers"]
CONVOLUTION = RecurrentOp(short_convolution, short_convolution_dense, of_rows=(0,))


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
    check(ARG_SPECS[name], bodies.call(short_convolution, ARG_SPECS[name], body))


@pytest.mark.parametrize("name", INTERPRETED)
def test_the_tpu_body_equals_formula_in_the_interpreter(name: str):
    spec = ARG_SPECS[name]
    with pltpu.force_tpu_interpret_mode():
        check(spec, short_convolution(*spec.arguments(), body="pallas_tpu", **spec.options))


@pytest.mark.parametrize("body", BODIES)
def test_what_belongs_to_nobody_may_be_nan(body: str):
    CONVOLUTION.check_what_belongs_to_nobody_may_be_nan(ARG_SPECS["mamba_130m_mixed"], body)


@pytest.mark.parametrize("body", BODIES)
def test_chunked_equals_whole(body: str):
    CONVOLUTION.check_chunked_equals_whole(ArgSpec(D=16, batch=Batch((12,))), body, atol=1e-6, state_atol=0)


@pytest.mark.parametrize("body", BODIES)
def test_dense_equals_ragged(body: str):
    spec = ArgSpec(D=16, batch=Batch((7, 7, 7), goes_on=(True, True, True)))
    CONVOLUTION.check_dense_equals_ragged(spec, body, atol=1e-6, state_atol=0)


def test_gradients_of_the_dense_form_are_the_formulas():
    spec = ArgSpec(D=8, batch=Batch((6, 6)))
    CONVOLUTION.check_gradients_of_the_dense_form(spec, from_a_state=True, atol=1e-5, rtol=1e-7)


@pytest.mark.parametrize("max_query_len", [1, 5])
def test_donated_states_are_not_copied(max_query_len: int):
    CONVOLUTION.check_donated_states_are_not_copied(ArgSpec(D=64, batch=Batch((1,) * 4)), max_query_len)
