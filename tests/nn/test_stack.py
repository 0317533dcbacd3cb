"""The layers in a loop give what the layers in a row give."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import run_tests
from flax import nnx

from flexjax.model import RaggedBatch, parameters, zeros
from flexjax.nn import Scan, layout_of, period
from models.transformer import Layer, Rope, TransformerConfig, build, save

ROPE, LOCAL = Rope(1e6), Rope(1e4)
SHAPE = dict(vocab_size=48, d_model=16, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=24, max_position=64)
FULL, WINDOW = Layer(None, ROPE), Layer(3, LOCAL)
VARIANTS = {
    "all alike": TransformerConfig("LlamaForCausalLM", **SHAPE, layers=(FULL,) * 3),
    # Two groups of three and two layers more.
    "a pattern and a rest": TransformerConfig(
        "Gemma3ForCausalLM", **SHAPE, layers=(WINDOW, WINDOW, FULL) * 2 + (WINDOW,) * 2, qk_norm=True, post_norms=True
    ),
    "with biases": TransformerConfig(
        "GPT2LMHeadModel", **SHAPE, layers=(Layer(),) * 2, gated_mlp=False, norm="layer", qkv_bias=True,
        out_bias=True, mlp_bias=True, learned_positions=True,
    ),
}  # fmt: skip
ALIKE = dict(rtol=0, atol=5e-6)  # float32 sums in another order, values of order 1.


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def models(request):
    model = build(request.param, dtype=jnp.float32)
    return model, model.stacked()


@pytest.mark.parametrize(
    ("layers", "length"),
    [("F", 1), ("FFFF", 1), ("SFSF", 2), ("SSF" * 2 + "SS", 3), ("SSSSSF" * 4 + "SS", 6), ("FSSS", 4)],
)
def test_the_period_of_a_pattern(layers, length):
    assert period([FULL if kind == "F" else WINDOW for kind in layers]) == length


def test_a_step_is_the_same(models):
    plain, stacked = models
    batch = RaggedBatch(
        tokens=jnp.array([5, 6, 7, 8, 9, 11], jnp.int32),
        positions=jnp.array([0, 1, 2, 3, 4, 0], jnp.int32),
        query_starts=jnp.array([0, 5, 6], jnp.int32),
        kv_lengths=jnp.array([5, 1], jnp.int32),
        page_table=jnp.array([[3, 1], [2, 0]], jnp.int32),
        state_slots=jnp.zeros(2, jnp.int32),
        max_query_len=5,
    )
    run = nnx.jit(lambda model, cache: model(batch, cache))
    want, caches = run(plain, zeros(layout_of(plain).paged(5, 4, 1, jnp.float32)))
    got, pools = run(stacked, zeros(layout_of(stacked).paged(5, 4, 1, jnp.float32)))
    np.testing.assert_allclose(got, want, **ALIKE)
    layout = layout_of(stacked)
    for pool, cache in zip(layout.pools, pools, strict=True):
        together = jnp.stack([caches[layer][0] for layer in pool.layers])
        np.testing.assert_allclose(cache, together.reshape(cache.shape), **ALIKE)
        np.testing.assert_array_equal(cache[:, 4], 0)  # A page of nobody.


def test_dense_is_the_same_with_a_cache_and_without(models):
    plain, stacked = models
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 48, (2, 7)), jnp.int32)
    run = nnx.jit(lambda model, tokens, positions, cache: model.dense(tokens, positions, cache))
    want, _ = run(plain, tokens, None, None)
    got, none = run(stacked, tokens, None, None)
    assert none is None
    np.testing.assert_allclose(got, want, **ALIKE)
    cache = zeros(layout_of(stacked).dense(2, 8, jnp.float32))
    positions = jnp.broadcast_to(jnp.arange(7, dtype=jnp.int32), (2, 7))
    for part in (slice(0, 4), slice(4, 7)):
        got, cache = run(stacked, tokens[:, part], positions[:, part], cache)
        np.testing.assert_allclose(got, want[:, part], **ALIKE)


def test_gradients_are_the_same(models):
    plain, stacked = models
    tokens = jnp.arange(6, dtype=jnp.int32)[None]
    loss = lambda model: jnp.square(model.dense(tokens)[0]).mean()
    one, other = (nnx.jit(nnx.grad(loss))(model) for model in (plain, stacked))
    np.testing.assert_allclose(other["embedding"]["table"][...], one["embedding"]["table"][...], **ALIKE)
    layers = len(plain.config.layers)
    size = period(plain.config.layers)
    first = [one["blocks"][i]["mlp"]["up"]["weight"][...] for i in range(0, layers - layers % size, size)]
    np.testing.assert_allclose(other["blocks"]["group"][0]["mlp"]["up"]["weight"][...], jnp.stack(first), **ALIKE)


def test_weights_and_cache_carry_their_axes(models):
    plain, stacked = models
    assert (plain.loops, stacked.loops) == (False, True) and stacked.stacked() is stacked
    assert isinstance(stacked.blocks, Scan)
    for name, axes, value in parameters(stacked):
        assert len(axes) == value.ndim, name
        assert ("layers" in axes) == (".group." in name), name
    layout = layout_of(stacked)
    assert sorted(layer for pool in layout.pools for layer in pool.layers) == list(range(plain.config.num_layers))
    ((one,), *_) = layout_of(plain).paged(5, 4, 1, jnp.bfloat16)
    pages, size, heads, _, head_dim = one.shape
    for pool, leaf in zip(layout.pools, layout.paged(5, 4, 1, jnp.bfloat16), strict=True):
        assert leaf.shape == (len(pool.layers), pages, size, 2 * heads, head_dim)
        assert (leaf.axes, leaf.copies) == (("layers", "pages", "page", "kv_heads", "head_dim"), one.copies)
        assert leaf.paired and leaf.nbytes == len(pool.layers) * one.nbytes


@pytest.mark.parametrize("stages", [1, 2])
def test_unstacked_is_the_model_that_was_stacked(models, stages):
    plain, _ = models
    again = plain.stacked(stages=stages).unstacked()
    (graph, state), (graph_before, before) = nnx.split(again), nnx.split(plain)
    assert graph == graph_before and plain.unstacked() is plain
    jax.tree.map(np.testing.assert_array_equal, state, before)


def test_a_stacked_model_is_saved_like_the_one_in_rows(tmp_path):
    plain = build(VARIANTS["all alike"], dtype=jnp.float32)
    for name, model in (("plain", plain), ("stacked", plain.stacked())):
        save(model, tmp_path / name)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "stacked"))
    assert one == other


def test_the_stack_divides_by_the_stages_and_the_rest_runs_after_it(models):
    plain, stacked = models
    groups, size = stacked.blocks.groups, len(stacked.blocks.pattern)
    over_two = plain.stacked(stages=2, microbatches=4)
    assert over_two.blocks.groups == 2
    assert len(over_two.blocks.rest) == len(plain.config.layers) - 2 * size
    assert over_two.stacked(stages=2, microbatches=4) is over_two
    message = f"stacked in {groups} of {size} for microbatches=1, and asked to run over stage=4 with microbatches=8"
    with pytest.raises(ValueError, match=message):
        stacked.stacked(stages=4, microbatches=8)
    with pytest.raises(ValueError, match=f"are {groups} groups of {size}, for stages=4. Give those devices to fsdp"):
        plain.stacked(stages=4)


def test_the_program_does_not_grow_with_the_depth():
    def size(layers: int) -> int:
        config = TransformerConfig("LlamaForCausalLM", **SHAPE, layers=(FULL,) * layers)
        model = build(config, dtype=jnp.float32).stacked()
        return len(jax.jit(lambda t: model.dense(t)[0]).lower(jnp.zeros((1, 4), jnp.int32)).as_text().splitlines())

    assert size(2) == size(6)


@pytest.mark.slow
def test_in_stages_over_eight_devices():
    run_tests(Path(__file__).with_name("stack_on_eight_devices.py"), count=8)
