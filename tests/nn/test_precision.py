"""Rounded products: equal to rounding the operands by hand, forwards and backwards, wherever a layer stands."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flexjax.nn import with_precision
from flexjax.nn.precision import product
from models.transformer import Layer, Rope, TransformerConfig, build

SPECS = {"BTD,DO->BTO": (16, 24), "BTD,OD->BTO": (24, 16)}
CONFIG = TransformerConfig(
    "LlamaForCausalLM", vocab_size=48, d_model=16, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=24, max_position=64,
    layers=(Layer(rope=Rope()),) * 2,
)  # fmt: skip


def operands(shape: tuple[int, int]) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(jax.random.normal(k, s) for k, s in zip(keys, [(2, 8, 16), shape, (2, 8, 24)], strict=True))


def rounded(x: jax.Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.bfloat16), np.float64)


@pytest.mark.parametrize("spec", SPECS)
def test_value_and_gradients(spec):
    x, w, g = operands(SPECS[spec])
    y, pull = jax.vjp(lambda x, w: product(x, w, "bfloat16", transposed="OD" in spec), x, w)
    dx, dw = pull(g)
    names, out = spec.split("->")
    names = names.split(",")
    # Products of rounded operands are exact in float32; only the order of the sums differs.
    np.testing.assert_allclose(y, np.einsum(spec, rounded(x), rounded(w)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        dx, np.einsum(f"{out},{names[1]}->{names[0]}", rounded(g), rounded(w)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        dw, np.einsum(f"{out},{names[0]}->{names[1]}", rounded(g), rounded(x)), rtol=1e-5, atol=1e-5
    )
    assert y.dtype == dx.dtype == dw.dtype == jnp.float32


def test_bfloat16_operands_are_what_they_are():
    x, w, _ = (a.astype(jnp.bfloat16) for a in operands(SPECS["BTD,DO->BTO"]))
    np.testing.assert_array_equal(product(x, w, "bfloat16"), product(x, w, "float32"))


def rounded_operands(model) -> int:
    """Arrays that a model's forward pass rounds to bfloat16."""
    tokens = jnp.zeros((1, 4), jnp.int32)
    text = str(jax.make_jaxpr(lambda: model.logits(model.dense(tokens)[0]))())
    assert text.count("dot_general") >= 2 * (7 + 2) + 1
    return text.count("new_dtype=bfloat16")


@pytest.mark.parametrize("tied", [False, True])
def test_every_product_with_a_weight_is_rounded_and_no_other(tied):
    model = build(dataclasses.replace(CONFIG, tied_embeddings=tied), dtype=jnp.float32)
    assert rounded_operands(model) == 0
    rounding = with_precision(model, "bfloat16")
    # Seven weights in each of two layers and the head, each with its rows; scores and mixtures stay.
    assert rounded_operands(rounding) == 2 * (2 * 7 + 1)
    assert rounded_operands(model) == rounded_operands(with_precision(rounding, "float32")) == 0


def gradients(model) -> np.ndarray:
    tokens = jnp.arange(6, dtype=jnp.int32)[None]
    loss = lambda model: jnp.square(model.logits(model.dense(tokens)[0])).mean()
    return np.asarray(nnx.jit(nnx.grad(loss))(model)["embedding"]["table"][...])


@pytest.mark.parametrize("form", ["stacked", "recomputing"])
def test_the_same_products_are_rounded_in_a_loop_and_when_computed_again(form):
    plain = build(CONFIG, dtype=jnp.float32)
    other = getattr(build(CONFIG, dtype=jnp.float32), form)()
    exact = gradients(plain)
    want = gradients(with_precision(plain, "bfloat16"))
    got = gradients(with_precision(other, "bfloat16"))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    assert np.abs(want - exact).max() > 1e-4 * np.abs(exact).max(), "else nothing was rounded"
