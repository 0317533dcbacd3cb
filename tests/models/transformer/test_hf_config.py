"""config.json in both styles, and what is refused."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from models.transformer import Layer, Rope, config_from_hf, config_to_hf

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*/config.json"))

# meta-llama/Llama-3.1-8B, as published.
LLAMA_31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
# google/gemma-3-1b-it, as published.
GEMMA_3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "use_cache": True,
    "vocab_size": 262144,
}


def newer(hf: dict) -> dict:
    """An older config.json as today's transformers would write it."""
    hf = dict(hf)
    hf["dtype"] = hf.pop("torch_dtype")
    hf["rope_parameters"] = {"rope_theta": hf.pop("rope_theta"), **(hf.pop("rope_scaling") or {"rope_type": "default"})}
    return hf


def test_llama_31_in_both_styles():
    config = config_from_hf(LLAMA_31_8B)
    assert config == config_from_hf(newer(LLAMA_31_8B))
    rope = Rope(500_000.0, "llama3", 8.0, 8192, 1.0, 4.0)
    assert config.layers == (Layer(None, rope),) * 32
    assert (config.head_dim, config.num_kv_heads, config.eos_token_id) == (128, 8, 128001)
    assert not config.tied_embeddings


def test_gemma_3_in_both_styles():
    config = config_from_hf(GEMMA_3_1B)
    hf = dict(GEMMA_3_1B)
    for old in ("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern"):
        del hf[old]
    hf["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    hf["layer_types"] = (["sliding_attention"] * 5 + ["full_attention"]) * 4 + ["sliding_attention"] * 2
    assert config == config_from_hf(hf)
    assert config.layers[4:7] == (Layer(512, Rope(1e4)), Layer(None, Rope(1e6)), Layer(512, Rope(1e4)))
    assert config.tied_embeddings and config.eos_token_id == (1, 106)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.parent.name)
def test_golden_configs_round_trip_through_the_older_style(path):
    config = config_from_hf(json.loads(path.read_text()))
    written = config_to_hf(config, jnp.bfloat16)
    assert "rope_parameters" not in written and written["torch_dtype"] == "bfloat16"
    assert config_from_hf(json.loads(json.dumps(written))) == config


def test_qwen_windows_start_at_max_window_layers():
    hf = {
        **{k: LLAMA_31_8B[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")},
        "architectures": ["Qwen2ForCausalLM"],
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "sliding_window": 128,
        "max_window_layers": 3,
    }
    assert [la.window for la in config_from_hf(hf | {"use_sliding_window": True}).layers] == [None, None, None, 128]
    assert [la.window for la in config_from_hf(hf | {"use_sliding_window": False}).layers] == [None] * 4


@pytest.mark.parametrize("value", [None, 4096])
def test_mistral_window(value):
    hf = {**LLAMA_31_8B, "architectures": ["MistralForCausalLM"], "sliding_window": value}
    for llama_only in ("attention_bias", "mlp_bias"):
        del hf[llama_only]
    assert {la.window for la in config_from_hf(hf).layers} == {value}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual_multiplier": 0.22}, "'residual_multiplier' = 0.22 .* asks for a multiplier"),
        ({"attn_logit_softcapping": 30.0}, "'attn_logit_softcapping' = 30.0"),  # Llama has none.
        ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor' = 0.5 .* another rotary embedding"),
        ({"quantization_config": {"bits": 4}}, "'quantization_config'"),
        ({"hidden_act": "relu"}, "'hidden_act' .* one of silu.*got 'relu'"),
        ({"vocab_size": None}, "must have the field 'vocab_size'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "one of default, linear.*'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, "needs a 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "'beta_fast' = 3"),
        ({"rope_parameters": {"rope_type": "default"}}, "both 'rope_scaling'"),
        ({"architectures": ["FalconForCausalLM"]}, "'FalconForCausalLM'"),
    ],
)
def test_what_would_change_the_result_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf({**LLAMA_31_8B, **changes})


def test_layer_types_must_fit():
    with pytest.raises(ValueError, match="each of the 26 layers; it has 1 entries"):
        config_from_hf({**GEMMA_3_1B, "layer_types": ["full_attention"]})
    with pytest.raises(ValueError, match="sliding_window = None"):
        config_from_hf({**GEMMA_3_1B, "sliding_window": None})


def test_an_architecture_refuses_to_write_what_it_cannot_say():
    gemma = config_from_hf(GEMMA_3_1B)
    llama = dataclasses.replace(gemma, architecture="LlamaForCausalLM")
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot say layers = .*post_norms = True"):
        config_to_hf(llama, jnp.float32)


def test_llama3_frequencies():
    """The three ranges of Llama 3.1: high frequencies kept, low ones divided by the factor, a blend between."""
    plain = Rope(500_000.0).inverse_frequencies(128)
    scaled = config_from_hf(LLAMA_31_8B).layers[0].rope.inverse_frequencies(128)
    waves = 2 * np.pi / plain
    np.testing.assert_array_equal(scaled[waves < 8192 / 4], plain[waves < 8192 / 4])
    np.testing.assert_allclose(scaled[waves > 8192], plain[waves > 8192] / 8, rtol=1e-6)
    between = (waves > 8192 / 4) & (waves < 8192)
    assert between.any() and (scaled[between] < plain[between]).all() and (scaled[between] > plain[between] / 8).all()
