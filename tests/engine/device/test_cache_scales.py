import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flexjax.data.corpus import held_out_documents
from flexjax.engine import Engine, EngineConfig, Request, SamplingParams
from flexjax.engine.device.cache_scales import MARGIN, cache_dtypes, cache_scales
from flexjax.engine.device.calibration import Calibration
from flexjax.engine.device.placement import Placement
from flexjax.engine.device.score import Scorer
from flexjax.engine.limits import page_pools
from flexjax.engine.tokenizer import load_vocabulary
from flexjax.kernels.ragged_paged_attention import LARGEST, num_clipped
from flexjax.model import zeros
from flexjax.nn import layout_of
from flexjax.refusal import Refusal
from models import transformer
from models.transformer import Layer, Rope, TransformerConfig, build

CONFIG = TransformerConfig(
    "LlamaForCausalLM", vocab_size=96, d_model=64, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=96,
    max_position=64, layers=(Layer(rope=Rope()),) * 2,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return build(CONFIG, dtype=jnp.float32)


def scales_of(model, dtype, vocabulary=None):
    calibration = Calibration.of(vocabulary, model.config)
    found = cache_scales(model, dtype, calibration.seen, calibration.held_out)
    return np.concatenate([scales.reshape(-1, *scales.shape[-3:]) for scales in found])


def by_leaf(model, scales):
    """Of each layer, as the cache of the model's form has them."""
    return None if scales is None else [scales] if model.loops else list(scales)


def keys_and_values(model, tokens):
    """Those of every layer, float32 [L, B * T, K, 2, H], by the plain form."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    cache = zeros(layout_of(model).dense(*tokens.shape, jnp.float32))
    _, cache = nnx.jit(lambda model, *arguments: model.dense(*arguments))(model, jnp.asarray(tokens), positions, cache)
    return np.stack([np.asarray(leaf).reshape(-1, *leaf.shape[2:]) for (leaf,) in cache])


@pytest.mark.parametrize("dtype", LARGEST)
def test_each_channel_s_scale_is_a_power_of_two_that_holds_what_the_model_makes_of_it(model, dtype):
    scales = scales_of(model, dtype)
    assert (np.log2(scales) % 1 == 0).all()
    found = np.abs(keys_and_values(model, Calibration.of(None, CONFIG).seen))
    room = scales * LARGEST[dtype] / found.max(1)
    assert (room[:, :, 1] >= MARGIN * (1 - 1e-6)).all() and (room[:, :, 1] < 2 * MARGIN * (1 + 1e-6)).all()
    # Of keys, that of the length of both channels that turn into each other.
    lengths = np.hypot(*np.split(found[:, :, :, 0], 2, axis=-1)).max(1)
    room = np.split(scales[:, :, 0] * LARGEST[dtype], 2, axis=-1) / np.stack([lengths] * 2)
    assert (room >= MARGIN * (1 - 1e-6)).all() and (room < 2 * MARGIN * (1 + 1e-6)).all()


def test_the_scales_are_the_same_in_every_form_and_at_each_call(model):
    scales = scales_of(model, "int8")
    np.testing.assert_array_equal(scales_of(model, "int8"), scales)
    np.testing.assert_array_equal(scales_of(model.stacked(), "int8"), scales)
    np.testing.assert_array_equal(scales_of(model.packed(), "int8"), scales)


def larger(model, layer: int, by: float):
    """The model with the values of a layer so many times as large, and what comes of them as much smaller."""
    model = nnx.merge(*nnx.split(model))
    attention = model.blocks[layer].attention
    attention.value.weight.set_value(attention.value.weight[...] * by)
    attention.out.weight.set_value(attention.out.weight[...] / by)
    return model


def score(model, dtype, scales=None, tokens=range(40), length=64):
    scorer = Scorer(
        model, max_model_len=length, page_size=8, cache_dtype=jnp.dtype(dtype), rows_per_step=16,
        placement=Placement(None), cache_scales=by_leaf(model, scales),
    )  # fmt: skip
    logits = scorer(list(tokens))
    return logits, num_clipped(scorer._cache)


def test_a_layer_a_hundred_times_another_s_costs_nothing(model):
    """To the bit where the factor is a power of two: scales follow it."""
    want, _ = score(model, "int8", scales_of(model, "int8"))
    by = larger(model, 1, 128.0)
    got, clipped = score(by, "int8", scales_of(by, "int8"))
    np.testing.assert_array_equal(got, want)
    assert clipped == 0


# Up to 2.5 times the room that a channel needs leaves int8 50 steps up to the largest; float8 errs by up to a 16th of
# each element, int4 by up to a 14th of a vector's largest.
WITHIN = {"int8": 0.03, "float8_e4m3fn": 0.1, "int4": 0.2}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("dtype", WITHIN)
def test_logits_stay_near(model, dtype, stacked):
    want, _ = score(model, jnp.float32)
    scales = scales_of(model, dtype) if dtype in LARGEST else None
    got, clipped = score(model.stacked() if stacked else model, dtype, scales)
    error = ((got - want) ** 2).mean() ** 0.5
    assert 0 < error < WITHIN[dtype] * want.std()
    assert clipped is None if scales is None else clipped < 10


@pytest.mark.parametrize("stacked", [False, True])
def test_what_is_clipped_is_counted(model, stacked):
    """With scales of a quarter, every number past a quarter of the largest."""
    tokens, small = np.arange(40)[None], scales_of(model, "int8") / 4
    found = np.abs(keys_and_values(model, tokens))
    # Layers after the first see what clipping has made of the one before.
    first = int((found[0] > 127 * small[0]).sum())
    model = model.stacked() if stacked else model
    scorer = Scorer(
        model, max_model_len=64, page_size=8, cache_dtype=jnp.dtype("int8"),
        rows_per_step=64, placement=Placement(None), cache_scales=by_leaf(model, small),
    )  # fmt: skip
    scorer(tokens[0].tolist())
    (leaf, *_) = scorer._cache
    counts = np.asarray(leaf.clipped[0] if stacked else leaf[0].clipped)
    assert first > 0 and abs(int(counts.sum()) - first) <= 1  # A number at the very edge may fall to either side.
    assert int(num_clipped(scorer._cache)) > counts.sum()


def test_more_than_a_thousandth_clipped_on_held_out_text_is_refused(model):
    """Half of the tokens have ten times the values of the others."""
    odd = nnx.merge(*nnx.split(model))
    tokens, channels = np.arange(96)[:, None] >= 48, np.arange(64) >= 32
    odd.embedding.table.set_value(odd.embedding.table[...] * jnp.float32(tokens == channels))
    first = odd.blocks[0].attention
    first.value.weight.set_value(first.value.weight[...] * jnp.float32(np.where(channels, 10, 1))[:, None, None])
    seen, held_out = np.arange(48)[None].repeat(4, 0), np.arange(48, 96)[None].repeat(4, 0)
    with pytest.raises(Refusal, match=r"int8 .* 0\.1% .* clips \d+\.\d\d% of the values of layer 0.*bfloat16"):
        cache_scales(odd, "int8", seen, held_out)
    cache_scales(odd, "int8", np.concatenate([seen[:2], held_out[:2]]), held_out)


DIRECTORY = "models/weights/pydoc-7m"
BIAS = 400.0  # Qwen2.5-7B has 605 and 921.
# Nats a token more than with a cache in the model's own dtype. With one scale for all, int8 loses 1.67.
LOSES = {"int8": 0.02, "float8_e4m3fn": 0.1}


@pytest.fixture(scope="module")
def biased():
    """The shipped model with biases, as Qwen2 has them: none but that of one channel of one head's keys."""
    model = transformer.load(DIRECTORY, dtype=jnp.bfloat16)
    config = model.config = dataclasses.replace(model.config, qkv_bias=True)
    for block in model.blocks:
        for name, axis, heads in (("query", "heads", config.num_heads), ("value", "kv_heads", config.num_kv_heads)):
            zero = nnx.Param(jnp.zeros((heads, config.head_dim), jnp.bfloat16), axes=(axis, "head_dim"))
            getattr(block.attention, name).bias = nnx.data(zero)
        key = jnp.zeros((config.num_kv_heads, config.head_dim), jnp.bfloat16).at[1, config.head_dim - 1].set(BIAS)
        block.attention.key.bias = nnx.data(nnx.Param(key, axes=("kv_heads", "head_dim")))
    return model


@pytest.mark.parametrize("dtype", LOSES)
def test_a_large_key_bias_costs_little(biased, dtype):
    vocabulary = load_vocabulary(DIRECTORY, vocab_size=biased.config.vocab_size)
    assert vocabulary is not None
    documents = [vocabulary.encode(document.text)[:128] for document in held_out_documents()[:4]]
    losses = {}
    for name in ("bfloat16", dtype):
        scales = scales_of(biased, dtype, vocabulary) if name == dtype else None
        found = [score(biased, name, scales, tokens, 128) for tokens in documents]
        each = [
            -np.asarray(jax.nn.log_softmax(logits[:-1]))[np.arange(len(tokens) - 1), list(tokens[1:])]
            for (logits, _), tokens in zip(found, documents, strict=True)
        ]
        losses[name] = np.concatenate(each).mean()
    assert abs(losses[dtype] - losses["bfloat16"]) < LOSES[dtype]
    written = sum(map(len, documents)) * scales_of(biased, dtype, vocabulary).size
    assert sum(int(clipped) for _, clipped in found) < 1e-4 * written


# Bytes of a token's keys and values of one kv head; a float32 cache has 8 * 16.
TOKEN_BYTES = {"int8": 2 * 16, "float8_e4m3fn": 2 * 16, "int4": 16 + 2 * 2}


@pytest.mark.parametrize("dtype", TOKEN_BYTES)
def test_the_engine_decodes_from_it(dtype):
    config = EngineConfig(dtype="float32", cache_dtype=dtype, max_num_seqs=2, max_num_batched_tokens=32)
    engine = Engine(build(CONFIG, dtype=jnp.float32), None, config)
    assert cache_dtypes(engine.runner.cache, engine.runner.layout) == {dtype}
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(engine.runner.cache)}
    assert dtypes == ({"int8", "bfloat16"} if dtype == "int4" else {dtype, "float32", "uint32"})
    tokens_held = engine.runner.num_pages * config.page_size
    beside = 2 * 2 * 2 * (16 * 4 + 4) if dtype in LARGEST else 0  # A scale a channel, and a count.
    assert engine.runner.cache_bytes == 2 * 2 * tokens_held * TOKEN_BYTES[dtype] + beside  # Layers, kv heads.
    tokens: list[int] = []
    params = SamplingParams(temperature=0, max_tokens=12)
    engine.submit(Request("a", tuple(range(20)), params, listener=lambda event: tokens.extend(event.token_ids)))
    while engine.step():
        pass
    scorer = Scorer(
        engine.runner.model(), max_model_len=64, page_size=16, cache_dtype=jnp.dtype(dtype), rows_per_step=32,
        placement=engine.placement, cache_scales=engine.runner.cache_scales,
    )  # fmt: skip
    logits = scorer([*range(20), *tokens])
    assert logits[19:-1].argmax(-1).tolist() == tokens
    # 20 tokens of prompt and all but the last of the answer; a sequence at its end writes its last one again.
    per_token = 2 * 2 * 2 * 16 if dtype in LARGEST else 0
    assert engine.stats.cache_values_written % (per_token or 1) == 0
    assert engine.stats.cache_values_written >= 31 * per_token
    assert engine.stats.cache_values_clipped <= 0.01 * engine.stats.cache_values_written


def test_the_engine_counts_what_is_clipped_since_the_last_reset():
    config = EngineConfig(dtype="float32", cache_dtype="int8", max_num_seqs=2, max_num_batched_tokens=32)
    engine = Engine(build(CONFIG, dtype=jnp.float32), None, config)
    small = [(dataclasses.replace(pages, scales=pages.scales / 16),) for (pages,) in engine.runner.cache]
    engine.runner.cache = small

    def run(name: str) -> tuple[int, int]:
        engine.submit(Request(name, tuple(range(20)), SamplingParams(temperature=0, max_tokens=1)))
        while engine.step():
            pass
        return engine.stats.cache_values_written, engine.stats.cache_values_clipped

    written, clipped = run("a")
    assert written == 20 * 2 * 2 * 2 * 16 and clipped > 0.1 * written
    assert clipped == num_clipped(engine.runner.cache)
    assert run("b") == (2 * written, 2 * clipped)
    engine.stats.reset()
    assert run("c") == (written, clipped)


def test_a_page_is_charged_for_all_that_it_holds(model):
    """A bound on the cache buys as many pages as its bytes are: elements and scales."""
    config = EngineConfig(dtype="float32", cache_dtype="int4", max_num_seqs=64, max_num_batched_tokens=65, page_size=16)
    page_bytes = 2 * 2 * 16 * TOKEN_BYTES["int4"]
    limited = dataclasses.replace(config, cache_gib=10 * page_bytes / 2**30)
    (pool,) = page_pools(limited, model, 64, Placement(None)).pools
    assert pool.capacity + 1 == 10
