"""The schedule's shape, what decays, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flexjax.train.optimizer import OptimizerConfig, make_optimizer, schedule
from models.transformer import Layer, Rope, TransformerConfig, build

CONFIG = OptimizerConfig(learning_rate=1e-2, warmup_steps=10, decay_fraction=0.25)


def test_linear_up_flat_linear_down():
    rates = np.array([schedule(CONFIG, 100)(step) for step in range(101)])
    np.testing.assert_allclose(rates[:10], 1e-2 * np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(rates[10:76], 1e-2, rtol=1e-6)
    np.testing.assert_allclose(rates[75:], 1e-2 * (1 - np.arange(26) / 25), rtol=1e-5, atol=1e-9)


def test_the_plateau_does_not_depend_on_the_number_of_steps():
    short, long = schedule(CONFIG, 100), schedule(CONFIG, 1000)
    np.testing.assert_array_equal([short(s) for s in range(75)], [long(s) for s in range(75)])


def test_only_matrices_decay():
    params = {"matrix": jnp.ones((2, 3)), "norm": jnp.ones(3)}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5), 10, params)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["matrix"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["norm"], 0)


@pytest.mark.parametrize("stacked", [False, True])
def test_biases_of_several_axes_and_stacked_norms_do_not_decay(stacked):
    shape = dict(vocab_size=16, d_model=8, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=8, max_position=8)
    config = TransformerConfig("Qwen2ForCausalLM", **shape, layers=(Layer(None, Rope(1e4)),) * 2, qkv_bias=True)
    model = build(config, dtype=jnp.float32)
    state = nnx.state(model.stacked() if stacked else model)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5), 10, state)
    ones = jax.tree.map(jnp.ones_like, state)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, state), optimizer.init(ones), ones)
    decayed = {".".join(map(str, path)): bool(u[...].any()) for path, u in nnx.to_flat_state(updates)}
    assert sum("bias" in name for name in decayed) == (3 if stacked else 6)
    for name, decays in decayed.items():
        assert decays == ("norm" not in name and "bias" not in name), name


def test_a_large_gradient_is_clipped():
    params = {"w": jnp.zeros((2, 2))}
    optimizer = make_optimizer(OptimizerConfig(clip_norm=1.0), 200, params)
    moments = [
        optimizer.update({"w": jnp.full((2, 2), size)}, optimizer.init(params), params)[1] for size in (1e3, 1e6)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *moments)


def test_a_warmup_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="10 warm-up steps do not fit before step 8"):
        schedule(CONFIG, 10)


@pytest.mark.parametrize("wrong", [{"learning_rate": 0.0}, {"decay_fraction": 1.5}, {"clip_norm": 0.0}])
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        OptimizerConfig(**wrong)
