import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from flexjax.engine import Engine, EngineConfig, Request, SamplingParams
from flexjax.model import parameters
from flexjax.nn import Linear, QuantizedWeight, quantize_weights
from flexjax.quantize import FORMATS, Quantized
from models.transformer import Layer, Rope, TransformerConfig, build

CONFIG = TransformerConfig(
    "LlamaForCausalLM", vocab_size=96, d_model=64, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=96,
    max_position=64, layers=(Layer(rope=Rope()),) * 2,
)  # fmt: skip


def weight(shape, summed: int, seed: int = 0, scale: float = 1.0) -> nnx.Param:
    values = np.random.default_rng(seed).standard_normal(shape, np.float32) * scale
    return nnx.Param(jnp.asarray(values), axes=("embed", "heads", "head_dim")[: len(shape)], summed=summed)


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(sorted(FORMATS)), seed=st.integers(0, 99), power=st.integers(-20, 20))
def test_every_value_is_within_half_a_scale(name, seed, power):
    real = weight((64, 3, 5), 1, seed, 2.0**power)
    quantized = QuantizedWeight.of(real, name)
    form = FORMATS[name]
    scale = np.asarray(quantized.scale[...]).reshape(-1, 15)
    scale = np.repeat(scale, 64 // scale.shape[0], axis=0)
    matrix = real[...].reshape(64, 15)
    assert np.all(np.abs(matrix - np.asarray(quantized.values[...], np.float32) * scale) <= 0.501 * scale)
    assert np.abs(np.asarray(quantized.values[...], np.int32)).max() == form.largest
    assert quantized.values.dtype == form.dtype


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("shape", "summed"), [((64, 4, 8), 1), ((4, 16, 24), 2), ((64, 32), 1)])
def test_a_product_is_one_with_the_rounded_weight(name, shape, summed):
    quantized, real = QuantizedWeight.of(weight(shape, summed), name), np.asarray(weight(shape, summed)[...])
    got = quantized(jnp.eye(math.prod(shape[:summed])))
    want = real.reshape(-1, *shape[summed:])
    assert got.shape == want.shape
    worst = {"int8": 1 / 254, "int4": 1 / 14}[name] * np.abs(want).max()
    np.testing.assert_allclose(got, want, atol=worst)


def test_zeros_stay_zeros():
    quantized = QuantizedWeight.of(nnx.Param(jnp.zeros((64, 4)), axes=("embed", "mlp"), summed=1), "int4")
    assert not quantized(jnp.eye(64)).any()


def test_a_weight_that_does_not_divide_into_groups_is_refused():
    with pytest.raises(ValueError, match=r"groups of 32; the 40 summed elements of a weight \[40, 4\].*int8"):
        QuantizedWeight.of(weight((40, 4), 1), "int4")


@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_matrix_made_elsewhere_with_zero_points_is_served(groups, stacked):
    """As published layouts have it: integers from 0 up, with a zero point for each scale."""
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.integers(-8, 8, (64, 24)), jnp.int4)
    shape = (24,) if groups is None else (groups, 24)
    scale, zero = (jnp.asarray(rng.uniform(0.5, 1, shape), jnp.float32) * s for s in (1, 8))
    linear = Linear(weight((64, 24), 1))
    linear.weight = QuantizedWeight(Quantized(values, scale, zero), ("embed", "mlp"), (24,))
    if stacked:  # The second of two layers.
        for held in (linear.weight.values, linear.weight.scale, linear.weight.zero):
            held.set_value(jnp.stack([jnp.zeros_like(held[...]), held[...]]))
        linear.weight.layer = nnx.data(jnp.int32(1))
    x = jnp.asarray(rng.standard_normal((3, 2, 64)), jnp.float32)
    wide = [np.repeat(np.atleast_2d(part), 64 // (groups or 1), axis=0) for part in (scale, zero)]
    want = np.asarray(x) @ ((np.asarray(values, np.float32) - wide[1]) * wide[0])
    np.testing.assert_allclose(linear(x), want, atol=2e-5 * np.abs(want).max())


def test_a_scale_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"has a scale \[4\], or \[G, 4\] .* evenly; got \[3, 4\]"):
        Quantized(jnp.zeros((8, 4), jnp.int8), jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"zero has the shape of scale, \[4\]; got \[2, 4\]"):
        Quantized(jnp.zeros((8, 4), jnp.int8), jnp.ones(4), jnp.ones((2, 4)))


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="int8 or int4; got 'int3'"):
        quantize_weights(build(CONFIG, dtype=jnp.float32), "int3")


@pytest.mark.parametrize("name", FORMATS)
def test_projections_alone_are_rounded_and_carry_their_axes(name):
    model = quantize_weights(build(CONFIG, dtype=jnp.bfloat16), name)
    kinds = {n: value.dtype.name for n, _, value in parameters(model)}
    assert kinds["embedding.table"] == kinds["blocks.0.attention_norm.scale"] == "bfloat16"
    for part in ("attention.query", "attention.out", "mlp.up", "mlp.down"):
        assert (kinds[f"blocks.1.{part}.weight.values"], kinds[f"blocks.1.{part}.weight.scale"]) == (name, "float32")
    assert kinds["unembedding.weight.values"] == name
    for n, axes, value in parameters(model):
        assert len(axes) == value.ndim, n


def test_a_tied_table_is_rounded_to_int8_with_one_scale_a_token():
    config = dataclasses.replace(CONFIG, tied_embeddings=True)
    real = build(config, dtype=jnp.float32)
    rounded = quantize_weights(build(config, dtype=jnp.float32), "int4")
    table = rounded.embedding.table
    assert (table.values.dtype, table.scale.shape) == (jnp.int8, (96,))
    tokens = jnp.array([[0, 5, 95]])
    wide = real.embedding.table[...][tokens]
    worst = jnp.max(jnp.abs(wide), axis=-1, keepdims=True) / 254
    assert jnp.all(jnp.abs(table.rows(tokens) - wide) <= 1.001 * jnp.broadcast_to(worst, wide.shape))
    hidden = jnp.asarray(np.random.default_rng(0).standard_normal((3, 64)), jnp.float32)
    want, got = real.logits(hidden), rounded.logits(hidden)
    assert 0 < jnp.sqrt(jnp.mean(jnp.square(got - want))) < 0.01 * jnp.std(want)


# Each product adds an error of about the largest weight / 127 / √12, or / 7 / √12, and fourteen follow one another.
@pytest.mark.parametrize(("name", "tolerance"), [("int8", 0.04), ("int4", 0.4)])
@pytest.mark.parametrize("stacked", [False, True])
def test_logits_stay_near(name, tolerance, stacked):
    real, rounded = (build(CONFIG, dtype=jnp.float32) for _ in range(2))
    rounded = quantize_weights(rounded, name)
    rounded = rounded.stacked() if stacked else rounded
    tokens = jnp.arange(12, dtype=jnp.int32)[None]
    run = nnx.jit(lambda model: model.logits(model.dense(tokens)[0]))
    want, got = run(real), run(rounded)
    assert 0 < jnp.sqrt(jnp.mean(jnp.square(got - want))) < tolerance * jnp.std(want)


def test_the_engine_decodes_with_them():
    config = EngineConfig(dtype="float32", weight_dtype="int8", max_num_seqs=2, max_num_batched_tokens=32)
    with pytest.raises(ValueError, match="weight_dtype says, int8; they are in no format"):
        Engine(build(CONFIG, dtype=jnp.float32), None, config)
    engine = Engine(quantize_weights(build(CONFIG, dtype=jnp.float32), "int8"), None, config)
    assert {str(w.dtype) for w in jax.tree.leaves(nnx.state(engine.runner.model()))} == {"int8", "float32"}
    tokens: list[int] = []
    params = SamplingParams(temperature=0, max_tokens=6)
    engine.submit(Request("a", (1, 2, 3), params, listener=lambda event: tokens.extend(event.token_ids)))
    while engine.step():
        pass
    model, text = quantize_weights(build(CONFIG, dtype=jnp.float32), "int8"), [1, 2, 3]
    run = nnx.jit(lambda model, tokens: model.logits(model.dense(tokens)[0])[0])
    for missing in range(6, 0, -1):  # Of one length, so that it is compiled once: no row sees those after it.
        logits = run(model, jnp.array([text + [0] * missing], jnp.int32))
        text.append(int(logits[len(text) - 1].argmax()))
    assert tokens == text[3:]
