"""What a wrong call is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.kernels.recurrent import Batch
from flexjax.kernels.short_convolution import short_convolution
from flexjax.kernels.short_convolution.api import _check
from flexjax.kernels.short_convolution.arg_specs import ArgSpec

SPEC = ArgSpec(D=8, batch=Batch((1, 3)))


def trace(*arguments, **options):
    return jax.eval_shape(lambda *x: short_convolution(*x, **{**SPEC.options, **options}), *arguments)


def test_states_have_the_dtype_of_the_rows():
    x, weight, bias, states, *batch = SPEC.arguments()
    with pytest.raises(ValueError, match="x is bfloat16, states are float32"):
        trace(x.astype(jnp.bfloat16), weight, bias, states, *batch)


def test_a_bound_below_one_is_refused():
    with pytest.raises(ValueError, match="max_query_len must be positive; got 0"):
        trace(*SPEC.arguments(), max_query_len=0)


def test_a_body_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="has the bodies base, xla, .*; 'gpu' was asked for"):
        trace(*SPEC.arguments(), body="gpu")


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        ((4, 7), None, r"weight must have shape \(4, 8\)"),
        ((1, 8), None, "weight must have 2 rows or more: one input is no convolution"),
        ((4, 8), (7,), r"bias must have shape \(8,\)"),
    ],
)
def test_shapes_that_do_not_fit(weight, bias, message):
    with pytest.raises(ValueError, match=message):
        _check(8, np.zeros(weight), None if bias is None else np.zeros(bias))
