"""The engine's decoding step, compiled for a chip that is not here."""

import jax.numpy as jnp
import pytest
from flax import nnx

from flexjax import families
from flexjax.engine import EngineConfig
from flexjax.hardware import chips, mesh, roofline, topology
from flexjax.lab import Refused
from flexjax.tune import CompiledStep, decode_program

CHIP = chips.find("v5e")

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(topology.missing(CHIP) is not None, reason=str(topology.missing(CHIP))),
]

HF = dict(
    **dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=512, hidden_size=256),
    **dict(intermediate_size=512, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=64),
    **dict(max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=1e4, hidden_act="silu"),
    **dict(tie_word_embeddings=True, attention_bias=False, mlp_bias=False, torch_dtype="bfloat16"),
)


@pytest.fixture(scope="module")
def program():
    family = families.find_family("LlamaForCausalLM")
    model = nnx.eval_shape(lambda: family.build(family.config_from_hf(HF), dtype=jnp.bfloat16))
    config = EngineConfig(max_num_seqs=8, max_num_batched_tokens=16, decode_steps=1)
    grid = mesh.make_mesh(mesh.MeshConfig(), topology.devices(CHIP, "1x1"))
    return decode_program(model, config, context=64, backend="tpu", mesh=grid)


@pytest.fixture(scope="module")
def evaluate(program):
    return CompiledStep(program, roofline.Limits.of(CHIP, "bfloat16"), "tpu")


def test_static_time_is_exact_and_never_called_measured(evaluate):
    cost = evaluate({"xla_tpu_rwb_fusion": False})
    assert cost.low == cost.ratio == cost.high == pytest.approx(cost.value / cost.default_value)
    assert cost.same_results is None
    assert evaluate.kind == "compiled"


def test_the_defaults_cost_what_they_cost(evaluate):
    assert evaluate({}).ratio == 1.0


def test_a_flag_that_libtpu_does_not_know_is_refused(evaluate):
    with pytest.raises(Refused, match="xla_tpu_nonsense"):
        evaluate({"xla_tpu_nonsense": True})


def test_a_step_that_does_not_fit_is_an_error_of_the_defaults(program):
    limits = roofline.Limits.of(CHIP, "bfloat16")
    with pytest.raises(ValueError, match="GiB more than a device has: choose more devices"):
        CompiledStep(program, limits.__class__(**{**vars(limits), "hbm_bytes": 1000}), "tpu")
