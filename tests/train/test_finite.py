import jax.numpy as jnp
import pytest

from flexjax.train.finite import not_finite


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_value_in_a_thousand_is_found_and_its_array_named(value, dtype):
    state = {
        "params": {"layers": [{"w": jnp.ones((10, 100), dtype).at[3, 4].set(value)}], "b": jnp.ones(3, dtype)},
        "optimizer": [jnp.array(3, jnp.int32)],
    }
    assert not_finite(state) == "params/layers/0/w"


def test_a_finite_state_has_none():
    assert not_finite({"w": jnp.full(4, jnp.finfo(jnp.float32).max), "step": jnp.array(1, jnp.int32)}) == ""


def test_many_are_counted():
    assert not_finite([jnp.full(2, jnp.nan)] * 7 + [jnp.ones(2)]) == "0, 1, 2 and 4 more of 8"
