import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from flexjax.causal_lm import zeros
from flexjax.engine import Engine, EngineConfig, Request, SamplingParams
from flexjax.engine.limits import num_pages
from flexjax.engine.placement import Placement
from flexjax.engine.score import Scorer
from flexjax.kernels.ragged_paged_attention import LARGEST
from flexjax.quantize import cache_dtypes, cache_scale
from flexjax.quantize.cache import MARGIN
from models.transformer import Layer, Rope, TransformerConfig, build

CONFIG = TransformerConfig(
    "LlamaForCausalLM", vocab_size=96, d_model=64, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=96,
    max_position=64, layers=(Layer(rope=Rope()),) * 2,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return build(CONFIG, dtype=jnp.float32)


def test_the_scale_holds_what_the_model_makes(model):
    scale = cache_scale(model)
    tokens = positions = jnp.arange(64, dtype=jnp.int32)[None]
    cache = zeros(model.dense_cache_spec(1, 64, jnp.float32))
    _, cache = nnx.jit(lambda model, *arguments: model.dense(*arguments))(model, tokens, positions, cache)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in cache)
    assert largest / MARGIN < 127 * scale < 3 * largest
    assert cache_scale(model.stacked()) == pytest.approx(scale)


def test_the_scale_of_float8_is_a_power_of_two_not_much_larger(model):
    scale = cache_scale(model, "float8_e4m3fn")
    needed = cache_scale(model) * 127 / 448
    assert math.log2(scale).is_integer() and needed <= scale < 2 * needed


def score(model, dtype, scale):
    scorer = Scorer(
        model,
        max_model_len=64,
        page_size=8,
        cache_dtype=dtype,
        rows_per_step=16,
        placement=Placement(None),
        kv_scale=scale,
    )
    return scorer(list(range(40)))


# A margin of 1.5 leaves int8 84 steps up to the largest; float8 errs by up to a 16th of each element, int4 by up to a
# 14th of a vector's largest.
WITHIN = {"int8": 0.03, "float8_e4m3fn": 0.1, "int4": 0.2}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("dtype", WITHIN)
def test_logits_stay_near(model, dtype, stacked):
    want = score(model, jnp.float32, None)
    scale = cache_scale(model, dtype) if dtype in LARGEST else None
    got = score(model.stacked() if stacked else model, jnp.dtype(dtype), scale)
    error = ((got - want) ** 2).mean() ** 0.5
    assert 0 < error < WITHIN[dtype] * want.std()


# Bytes of a token's keys and values of one kv head; a float32 cache has 8 * 16.
TOKEN_BYTES = {"int8": 2 * 16, "float8_e4m3fn": 2 * 16, "int4": 16 + 2 * 2}


@pytest.mark.parametrize("dtype", TOKEN_BYTES)
def test_the_engine_decodes_from_it(dtype):
    config = EngineConfig(dtype="float32", cache_dtype=dtype, max_num_seqs=2, max_num_batched_tokens=32)
    engine = Engine(build(CONFIG, dtype=jnp.float32), None, config)
    assert cache_dtypes(engine.runner.cache) == {dtype}
    leaves = jax.tree.leaves(engine.runner.cache)
    assert {leaf.dtype.name for leaf in leaves} == ({"int8", "bfloat16"} if dtype == "int4" else {dtype})
    tokens_held = engine.runner.num_pages * config.page_size
    assert engine.runner.cache_bytes == 2 * 2 * tokens_held * TOKEN_BYTES[dtype]  # Layers, kv heads.
    tokens: list[int] = []
    params = SamplingParams(temperature=0, max_tokens=12)
    engine.submit(Request("a", tuple(range(20)), params, listener=lambda event: tokens.extend(event.token_ids)))
    while engine.step():
        pass
    scorer = Scorer(
        engine.runner.model(), max_model_len=64, page_size=16, cache_dtype=jnp.dtype(dtype), rows_per_step=32,
        placement=engine.placement, kv_scale=engine.runner.program.kv_scale,
    )  # fmt: skip
    logits = scorer([*range(20), *tokens])
    assert logits[19:-1].argmax(-1).tolist() == tokens


def test_a_page_is_charged_for_all_that_it_holds(model):
    """A bound on the cache buys as many pages as its bytes are: elements and scales."""
    config = EngineConfig(dtype="float32", cache_dtype="int4", max_num_seqs=64, max_num_batched_tokens=65, page_size=16)
    page_bytes = 2 * 2 * 16 * TOKEN_BYTES["int4"]
    limited = dataclasses.replace(config, cache_gib=10 * page_bytes / 2**30)
    assert num_pages(limited, model, 64, Placement(None)) == 10
