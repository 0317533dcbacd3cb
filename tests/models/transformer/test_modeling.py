"""Properties that hold for every variant of the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flexjax.model import RaggedBatch, zeros
from flexjax.nn import attention as attention_module
from flexjax.nn import layout_of
from models.transformer import Layer, Rope, TransformerConfig, build

SHAPE = dict(vocab_size=48, d_model=16, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=24, max_position=64)
ROPE = Rope()
LLAMA = TransformerConfig("LlamaForCausalLM", **SHAPE, layers=(Layer(None, ROPE), Layer(5, ROPE)))
GEMMA = TransformerConfig(
    "Gemma3ForCausalLM",
    **SHAPE,
    layers=(Layer(4, ROPE), Layer(None, Rope(1e6))),
    activation="gelu_tanh",
    norm_offset=1.0,
    post_norms=True,
    qk_norm=True,
    attention_softcap=5.0,
    final_softcap=8.0,
    scaled_embeddings=True,
    tied_embeddings=True,
)
GPT2 = TransformerConfig(
    "GPT2LMHeadModel",
    **{**SHAPE, "num_kv_heads": 4},
    layers=(Layer(), Layer()),
    activation="gelu_tanh",
    gated_mlp=False,
    norm="layer",
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    learned_positions=True,
    tied_embeddings=True,
)
TOKENS = np.random.default_rng(0).integers(0, 48, (2, 11)).astype(np.int32)
# float32 sums in two orders: of Gemma's values, up to 2.5, both are up to 3.2e-6 from the same network in float64.
EXACT_ENOUGH = dict(rtol=0, atol=6.4e-6)


@nnx.jit
def dense(model, tokens, positions=None, cache=None):
    return model.dense(tokens, positions, cache)


@nnx.jit
def paged(model, batch, cache):
    return model(batch, cache)


@pytest.fixture(scope="module", params=[LLAMA, GEMMA, GPT2], ids=lambda c: c.architecture)
def model(request):
    return build(request.param, dtype=jnp.float32)


def ragged(tokens: np.ndarray, done: int, padding: int = 0) -> RaggedBatch:
    """One sequence with `done` tokens behind it, and rows of padding after it."""
    fill = np.full(padding, 7, np.int32)
    return RaggedBatch(
        tokens=jnp.asarray(np.concatenate([tokens, fill])),
        positions=jnp.asarray(np.concatenate([done + np.arange(len(tokens), dtype=np.int32), fill])),
        query_starts=jnp.asarray([0, len(tokens), len(tokens)] if padding else [0, len(tokens)], jnp.int32),
        kv_lengths=jnp.asarray([done + len(tokens), 0] if padding else [done + len(tokens)], jnp.int32),
        page_table=jnp.asarray([[3, 1, 2, 4], [0] * 4] if padding else [[3, 1, 2, 4]], jnp.int32),
        state_slots=jnp.zeros(2 if padding else 1, jnp.int32),
        max_query_len=len(tokens),
    )


def test_causality_by_gradient(model):
    """The state at position 6 depends on the embeddings of tokens 0..6 and on no later one.

    The output matrix is not asked, so a tied table acts through the input alone.
    """

    graph, embedding, rest = nnx.split(model, nnx.PathContains("embedding"), ...)
    direction = jax.random.normal(jax.random.key(0), (model.config.d_model,))

    @jax.jit
    def state_at_6(embedding):
        hidden, _ = nnx.merge(graph, embedding, rest).dense(jnp.arange(11, dtype=jnp.int32)[None])
        return jnp.vdot(hidden[0, 6], direction)

    gradient = jax.grad(state_at_6)(embedding)["embedding"]["table"][...]
    influence = jnp.square(gradient).sum(-1)[:11]
    assert (influence[7:] == 0).all()
    assert (influence[:7] > 0).all()


def test_a_window_hides_what_lies_behind_it():
    config = TransformerConfig("MistralForCausalLM", **SHAPE, layers=(Layer(4, ROPE),))
    model = build(config, dtype=jnp.float32)
    changed = TOKENS.copy()
    changed[:, 2] += 1
    before, after = (dense(model, jnp.asarray(t))[0] for t in (TOKENS, np.minimum(changed, 47)))
    differs = np.abs(np.asarray(before - after)).max((0, 2)) > 0
    np.testing.assert_array_equal(np.flatnonzero(differs), [2, 3, 4, 5])


def test_dense_with_cache_equals_dense(model):
    """Both in two chunks, and with rows at different positions."""
    whole = np.asarray(dense(model, jnp.asarray(TOKENS))[0])
    cache = zeros(layout_of(model).dense(2, 16, jnp.float32))
    positions = np.broadcast_to(np.arange(11, dtype=np.int32), (2, 11))
    first, cache = dense(model, jnp.asarray(TOKENS[:, :4]), jnp.asarray(positions[:, :4]), cache)
    rest, cache = dense(model, jnp.asarray(TOKENS[:, 4:]), jnp.asarray(positions[:, 4:]), cache)
    np.testing.assert_allclose(np.concatenate([first, rest], axis=1), whole, **EXACT_ENOUGH)

    # Row 0 writes its token 10 again, row 1 its token 5; what lies later stays out of sight.
    tokens, at = TOKENS[[0, 1], [10, 5]][:, None], np.asarray([[10], [5]], np.int32)
    again, _ = dense(model, jnp.asarray(tokens), jnp.asarray(at), cache)
    np.testing.assert_allclose(again[:, 0], whole[[0, 1], [10, 5]], **EXACT_ENOUGH)


def test_ragged_equals_dense_whole_chunked_and_padded(model):
    tokens = TOKENS[0]
    expected = np.asarray(dense(model, jnp.asarray(tokens[None]))[0][0])
    empty = zeros(layout_of(model).paged(5, 4, 1, jnp.float32))

    whole, whole_cache = paged(model, ragged(tokens, 0), empty)
    np.testing.assert_allclose(whole, expected, **EXACT_ENOUGH)

    padded, padded_cache = paged(model, ragged(tokens, 0, padding=5), empty)
    np.testing.assert_allclose(padded[:11], expected, **EXACT_ENOUGH)
    for (leaf,), (other,) in zip(padded_cache, whole_cache, strict=True):
        np.testing.assert_allclose(leaf, other, **EXACT_ENOUGH)  # No row of padding was written.

    first, cache = paged(model, ragged(tokens[:6], 0), empty)
    rest, _ = paged(model, ragged(tokens[6:], 6), cache)
    np.testing.assert_allclose(np.concatenate([first, rest]), expected, **EXACT_ENOUGH)


def test_every_parameter_and_cache_leaf_names_its_axes(model):
    sizes = model.config.axis_sizes
    for path, parameter in nnx.to_flat_state(nnx.state(model)):
        assert parameter.shape == tuple(sizes[axis] for axis in parameter.axes), path
    layout = layout_of(model)
    for spec in (layout.paged(5, 4, 1, jnp.bfloat16), layout.dense(2, 8, jnp.bfloat16)):
        assert len(spec) == model.config.num_layers
        for (leaf,) in spec:
            assert len(leaf.axes) == len(leaf.shape)
            assert leaf.shape[2:] == (model.config.num_kv_heads, 2, model.config.head_dim)


def test_shapes_without_memory_are_those_of_a_real_model(model):
    abstract = nnx.eval_shape(lambda: build(model.config, dtype=jnp.float32))

    def shapes(module):
        return {path: (leaf.shape, leaf.dtype) for path, leaf in nnx.to_flat_state(nnx.state(module))}

    assert shapes(abstract) == shapes(model)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_activations_follow_the_parameters_and_logits_are_float32(dtype):
    model = build(GEMMA, dtype=dtype)
    hidden, _ = dense(model, jnp.asarray(TOKENS))
    assert hidden.dtype == dtype
    assert model.logits(hidden).dtype == jnp.float32


def test_seeds():
    same, other = build(LLAMA, dtype=jnp.float32), build(LLAMA, dtype=jnp.float32, seed=1)
    again = build(LLAMA, dtype=jnp.float32)
    assert (same.embedding.table[...] == again.embedding.table[...]).all()
    assert (same.embedding.table[...] != other.embedding.table[...]).any()


def test_soft_caps_bound_the_logits():
    model = build(GEMMA, dtype=jnp.float32)
    logits = model.logits(1e4 * jnp.ones((1, 16), jnp.float32))
    assert jnp.abs(logits).max() <= 8.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_heads=3), "num_heads must be a multiple of num_kv_heads; got 3 and 2"),
        (dict(layers=(Layer(0, ROPE),)), "at least 1 token or None; layer 0 has 0"),
        (dict(layers=()), "at least one layer"),
        (dict(head_dim=7), "even head_dim; got 7"),
    ],
)
def test_config_invariants(changes, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{"architecture": "LlamaForCausalLM", **SHAPE, "layers": (Layer(None, ROPE),), **changes})


@pytest.mark.parametrize("window", [None, 5])
def test_attention_in_blocks_is_attention(window, monkeypatch):
    """And so are its gradients: a row's sums are the same whichever rows are computed beside it."""
    monkeypatch.setattr(attention_module, "LONG_CONTEXT", 8)
    monkeypatch.setattr(attention_module, "QUERY_BLOCK", 4)
    q, k, v = (jax.random.normal(jax.random.key(n), (2, 16, n, 8)) for n in (4, 2, 1))
    v = jnp.concatenate([v, 2 * v], axis=2)
    positions = jnp.broadcast_to(jnp.arange(16, dtype=jnp.int32), (2, 16))

    def gradients(attention):
        mixed = lambda *args: attention(*args, positions, scale=0.3, window=window, softcap=None)
        loss = lambda *args: jnp.sin(mixed(*args)).sum()
        return jax.jit(lambda *args: (mixed(*args), jax.grad(loss, (0, 1, 2))(*args)))(q, k, v)

    whole, blocks = gradients(attention_module.dense_attention), gradients(attention_module.attention_in_blocks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), blocks, whole)
