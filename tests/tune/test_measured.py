"""The engine's decoding step, timed with flags beside itself without."""

import jax
import numpy as np
import pytest
from flax import nnx

from flexjax import families
from flexjax.engine import EngineConfig
from flexjax.engine.device.sampling import empty_memory
from flexjax.lab import Refused
from flexjax.model import zeros
from flexjax.tune import MeasuredStep, decode_program, decode_shape, step

HF = dict(
    **dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=64, hidden_size=32),
    **dict(intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16),
    **dict(max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=1e4, hidden_act="silu"),
    **dict(tie_word_embeddings=True, attention_bias=False, mlp_bias=False, torch_dtype="float32"),
)
CONTEXT = 20


@pytest.fixture(scope="module")
def model():
    family = families.find_family("LlamaForCausalLM")
    return family.build(family.config_from_hf(HF), dtype=jax.numpy.float32)


@pytest.fixture(scope="module")
def program(model):
    config = EngineConfig(dtype="float32", max_num_seqs=2, max_num_batched_tokens=8, decode_steps=2)
    return decode_program(model, config, context=CONTEXT, backend="cpu")


@pytest.fixture(scope="module")
def evaluate(model, program):
    return MeasuredStep(model, program, context=CONTEXT, rounds=3, dispatches=2)


def test_a_full_batch_decodes_at_its_context(model, program):
    """Each sequence writes the steps of one dispatch at its own pages, from its context on, and nowhere else."""
    packed = step.full_batch(program, CONTEXT)
    compiled = program.lower(decode_shape(program)).compile()
    slots = program.config.max_num_seqs + 1
    cache, _, sampled = compiled(
        jax.tree.leaves(nnx.state(model)), zeros(program.cache_spec), empty_memory(slots, 64), jax.numpy.asarray(packed)
    )
    assert np.asarray(sampled.tokens).shape[0] == program.config.decode_steps
    page = program.config.page_size
    table = program.packings[decode_shape(program)].views(packed)["page_table"][:2]
    wanted = {(int(table[s][p // page]), p % page) for s in range(2) for p in range(CONTEXT - 1, CONTEXT + 1)}
    for leaf in jax.tree.leaves(cache):
        written = {(int(p), int(r)) for p, r, *_ in np.argwhere(np.asarray(leaf))}
        assert {w for w in written if w[0]} == wanted  # Page 0 takes what padding writes.


def test_a_flag_is_timed_beside_the_defaults(evaluate):
    cost = evaluate({"xla_cpu_prefer_vector_width": 512})
    assert cost.value > 0 and cost.default_value > 0
    assert 0 < cost.low <= cost.ratio <= cost.high
    assert evaluate.kind == "measured"


def test_more_effort_is_more_rounds_and_neither_side_always_goes_first(evaluate, monkeypatch):
    order = []
    monkeypatch.setattr(evaluate, "_dispatch", lambda compiled: order.append(compiled is evaluate._default) or 1.0)
    cost = evaluate({}, effort=2)
    order = order[2:]  # A warm-up of both.
    assert len(order) == 2 * 2 * 3 * 2  # Both sides, twice three rounds of two dispatches.
    assert sum(order) == len(order) / 2
    assert sum(order[::2]) == len(order) / 4
    assert cost.ratio == cost.low == cost.high == 1.0
    assert cost.same_results is True


def test_a_rounds_ratio_is_of_medians(evaluate, monkeypatch):
    """One dispatch in three that the machine disturbs, whichever side it meets, moves nothing."""
    monkeypatch.setattr(evaluate, "_dispatches", 3)
    calls = {True: 0, False: 0}

    def disturbed(compiled):
        default = compiled is evaluate._default
        calls[default] += 1
        return (100.0 if calls[default] % 3 == 0 else 1.0) * (1.0 if default else 0.5)

    monkeypatch.setattr(evaluate, "_dispatch", disturbed)
    cost = evaluate({})
    assert cost.low == cost.ratio == cost.high == 0.5
    assert (cost.value, cost.default_value) == (0.5, 1.0)


def test_a_change_of_results_is_seen(evaluate, monkeypatch):
    results = evaluate._results
    monkeypatch.setattr(evaluate, "_dispatch", lambda compiled: 1.0)
    monkeypatch.setattr(evaluate, "_results", lambda compiled: [r + r.dtype.type(1) for r in results(compiled)])
    assert evaluate({}).same_results is False


@pytest.mark.parametrize("flag", [{"xla_cpu_nonsense": True}, {"xla_cpu_prefer_vector_width": "wide"}])
def test_a_flag_that_the_compiler_does_not_take_is_refused(evaluate, flag):
    with pytest.raises(Refused, match=next(iter(flag))):
        evaluate(flag)


def test_the_engines_own_options_stay_under_a_candidate(program, monkeypatch):
    seen = []
    step.compiled_with(program, {"xla_cpu_x": 1}, "cpu", lambda lowered, options: seen.append(options))
    assert seen == [{**step.compiler_options(program.config, "cpu"), "xla_cpu_x": 1}]
