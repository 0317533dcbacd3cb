"""Every body of top-k, top-p and min-p that runs here, against its definition in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from flexjax import kernels
from flexjax.kernels.sample_top import sample_top
from flexjax.kernels.sample_top.arg_specs import ARG_SPECS, ArgSpec

BODIES = ["base", "xla", "pallas_tpu"]  # The last interpreted.


def call(body: str, arguments) -> np.ndarray:
    kernels.forget()
    with pltpu.force_tpu_interpret_mode():
        limits = jax.jit(functools.partial(sample_top, body=body))(*arguments)
    assert [choice.body for choice in kernels.bodies_used()["sample_top"]] == [body]
    return np.asarray(limits)


@pytest.mark.parametrize("name", ARG_SPECS)
@pytest.mark.parametrize("body", BODIES)
def test_keeps_what_the_rules_keep(body: str, name: str):
    spec = ARG_SPECS[name]
    logits, *_ = arguments = spec.arguments()
    for row, (k, p, floor), limit in zip(np.asarray(logits, np.float64), spec.rows, call(body, arguments), strict=True):
        kth = np.sort(row)[-min(k or spec.V, spec.V)]
        weights = np.where(row >= kth, np.exp(row - row.max()), 0)
        mass = lambda t, weights=weights, row=row: weights[row >= t].sum() / weights.sum()
        by_floor = row.max() + np.log(floor) if floor else -np.inf
        assert limit >= kth and limit >= by_floor - 1e-6
        if limit <= max(kth, by_floor) + 1e-6:
            # Where another rule decides, top-p would keep as much or more.
            assert p == 1 or mass(np.nextafter(limit, np.inf)) < p + 1e-6 or limit == kth
        else:
            assert mass(limit) >= p - 1e-6
            assert mass(np.nextafter(limit, np.inf)) < p + 1e-6


@pytest.mark.parametrize("body", ["xla", "pallas_tpu"])
def test_bodies_agree_with_the_formula_to_the_bit(body: str):
    arguments = ARG_SPECS["each_rule"].arguments()
    np.testing.assert_array_equal(call(body, arguments), call("base", arguments))


@pytest.mark.parametrize("body", BODIES)
def test_a_row_does_not_see_the_others(body: str):
    logits, *rules = ArgSpec(((5, 0.9, 0.0),) * 3, 300).arguments()
    changed = logits.at[1:].multiply(0.1)
    assert call(body, (logits, *rules))[0] == call(body, (changed, *rules))[0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"logits are float32 \[B, V\].*got bfloat16 \(2, 8\)"):
        sample_top(jnp.ones((2, 8), jnp.bfloat16), jnp.ones(2, jnp.int32), jnp.ones(2), jnp.ones(2))
