import jax.numpy as jnp
import pytest

from flexjax.causal_lm import zeros
from flexjax.engine import Engine, EngineConfig, Request, SamplingParams
from flexjax.engine.placement import Placement
from flexjax.engine.score import Scorer
from flexjax.quantize import cache_scale
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
    tokens = jnp.arange(64, dtype=jnp.int32)[None]
    _, cache = model.dense(
        tokens, jnp.arange(64, dtype=jnp.int32)[None], zeros(model.dense_cache_spec(1, 64, jnp.float32))
    )
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in cache)
    assert largest / MARGIN < 127 * scale < 3 * largest
    assert cache_scale(model.stacked()) == pytest.approx(scale)


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


@pytest.mark.parametrize("stacked", [False, True])
def test_logits_stay_near(model, stacked):
    want = score(model, jnp.float32, None)
    got = score(model.stacked() if stacked else model, jnp.int8, cache_scale(model))
    error = ((got - want) ** 2).mean() ** 0.5
    assert 0 < error < 0.03 * want.std()  # A margin of 1.5 leaves 84 steps up to the largest value.


def test_the_engine_decodes_from_it():
    config = EngineConfig(dtype="float32", cache_dtype="int8", max_num_seqs=2, max_num_batched_tokens=32)
    engine = Engine(build(CONFIG, dtype=jnp.float32), None, config)
    assert {str(leaf.dtype) for leaf in engine.runner.cache} == {"int8"}
    assert (
        engine.runner.cache_bytes * 4
        == Engine(
            build(CONFIG, dtype=jnp.float32),
            None,
            EngineConfig(dtype="float32", max_num_seqs=2, max_num_batched_tokens=32),
        ).runner.cache_bytes
    )
    tokens: list[int] = []
    params = SamplingParams(temperature=0, max_tokens=12)
    engine.submit(Request("a", tuple(range(20)), params, listener=lambda event: tokens.extend(event.token_ids)))
    while engine.step():
        pass
    scorer = Scorer(
        engine.runner.model(), max_model_len=64, page_size=16, cache_dtype=jnp.int8, rows_per_step=32,
        placement=engine.placement, kv_scale=engine.runner.program.kv_scale,
    )  # fmt: skip
    logits = scorer([*range(20), *tokens])
    assert logits[19:-1].argmax(-1).tolist() == tokens
