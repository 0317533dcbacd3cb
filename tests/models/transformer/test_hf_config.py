"""config.json in both styles, and what is refused."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.refusal import Refusal
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
        ({"quantization_config": {"bits": 4}}, "'quantization_config'.*weights that are not plain floats"),
        ({"num_local_experts": 8}, "experts"),
        ({"kv_lora_rank": 512}, "latent vectors"),
        ({"embedding_multiplier": 12.0}, "a multiplier"),
        ({"logits_scaling": 8.0}, "a multiplier"),
        ({"attention_multiplier": 1.0}, "'attention_multiplier' = 1.0.*changes the result"),
        ({"scale_emb": 12}, "a multiplier"),
        ({"clip_qkv": 8.0}, "a soft-cap or a clip"),
        ({"some_logit_softcap": 8.0}, "a soft-cap or a clip"),
        ({"alibi": True}, "another position embedding"),
        ({"position_embedding_type": "alibi"}, "'position_embedding_type' = 'alibi'"),
        ({"no_rope_layers": [1, 1, 0]}, "layers without a rotary embedding"),
        ({"rope_interleaved": True}, "another rotary embedding"),
        ({"sliding_window": 4096}, "an attention window"),  # Llama has none.
        ({"layer_types": ["full_attention", "linear_attention"]}, "another kind of attention"),
        ({"is_causal": False}, "'is_causal' = False.*the value served is True"),
        ({"is_encoder_decoder": True}, "'is_encoder_decoder' = True"),
        ({"use_qk_norm": True}, "a norm"),
        ({"use_bias": True}, "a bias"),
        ({"use_parallel_residual": True}, "another order of the sub-layers"),
        ({"hidden_size_per_layer_input": 256}, "inputs to each layer"),
        ({"hidden_act": "relu"}, "'hidden_act' .* one of silu.*got 'relu'"),
        ({"vocab_size": None}, "must have the field 'vocab_size'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "one of default, linear.*'longrope'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic': its frequencies change with the length"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, "'mrope': its positions have three parts"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}}, "mrope_section.*three parts"),
        ({"rope_scaling": 2.0}, "must be an object"),
        ({"rope_scaling": {"type": "linear"}}, "needs a 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "'beta_fast' = 3"),
        ({"rope_parameters": {"rope_type": "default"}}, "both 'rope_scaling'"),
        ({"architectures": ["FalconForCausalLM"]}, "'FalconForCausalLM'"),
        ({"architectures": ["LlamaForCausalLM", "LlamaModel"]}, "must name one of .*'LlamaModel'"),
        ({"architectures": None, "model_type": "falcon"}, "'model_type' one of llama.*None and 'falcon'"),
    ],
)
def test_what_would_change_the_result_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf({**LLAMA_31_8B, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "4096"}, "'hidden_size' in config.json must be a whole number of at least 1; it is '4096'"),
        ({"num_attention_heads": 0}, "'num_attention_heads' .* at least 1; it is 0"),
        ({"vocab_size": 2.5}, "'vocab_size' .* whole number"),
        ({"num_hidden_layers": [3]}, "'num_hidden_layers' .* whole number"),
        ({"max_position_embeddings": True}, "'max_position_embeddings' .* whole number"),
        ({"num_key_value_heads": -1}, "'num_key_value_heads' .* at least 0"),
        ({"rms_norm_eps": {"a": 1}}, "'rms_norm_eps' .* a number"),
        ({"hidden_act": ["silu"]}, "'hidden_act' .* a text"),
        ({"rope_theta": "10000"}, "'rope_theta' .* a number"),
        ({"rope_theta": 0}, "'rope_theta' of a rope .* above 0; it is 0"),
        ({"rope_scaling": {"type": ["linear"]}}, r"rope_type \['linear'\]"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "'factor' of a rope .* above 0; it is '2'"),
        ({"rope_scaling": {"type": "yarn", "factor": 0}}, "'factor' of a rope .* above 0; it is 0"),
        ({"architectures": [5]}, "must name one of"),
        ({"architectures": None, "model_type": ["llama"]}, "must name one of"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(changes, message):
    with pytest.raises(Refusal, match=message):
        config_from_hf({**LLAMA_31_8B, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": 5},
        {"layer_types": [["full_attention"]]},
        {"dual_chunk_attention_config": "a"},
        {"dual_chunk_attention_config": {"chunk_size": 8}},
        {"sliding_window": "4096"},
    ],
)
def test_a_value_of_another_kind_is_refused_where_only_some_read_it(changes):
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 32)
    sizes |= dict(num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64)
    with pytest.raises(Refusal, match=f"{next(iter(changes))!r} in config.json must be a"):
        config_from_hf(sizes | {"architectures": ["Qwen2ForCausalLM"]} | changes)


@pytest.mark.parametrize(
    "harmless",
    [
        {"residual_multiplier": 1.0, "logits_scaling": 1, "embedding_multiplier": None},
        {"partial_rotary_factor": 1.0, "rope_interleaved": False, "use_mrope": False, "rope_ratio": 1},
        {"quantization_config": None, "quantization": {}, "num_local_experts": 0, "clip_qkv": None, "alibi": False},
        {"layer_types": ["full_attention"] * 32, "no_rope_layers": [1] * 32, "attn_type": "full"},
        {"final_logit_softcapping": None, "attn_logit_softcapping": 0.0, "sliding_window": None},
        {"position_embedding_type": "rope", "norm_type": "rmsnorm", "is_causal": True, "scale_attn_weights": True},
        {"attention_dropout": 0.1, "use_fused_rmsnorm": True, "attention_softmax_in_fp32": True, "init_std": 0.02},
        {"unk_token_id": 0, "forced_bos_token_id": 3, "repetition_penalty": 1.1, "max_length": 4096, "_scale": 3},
        {"layer_norm_eps": 1e-5, "max_sequence_length": 2048, "auto_map": {"AutoModelForCausalLM": "x.y"}},
        {"head_dim": None, "rope_theta": 500_000.0, "attention_bias": None, "mlp_bias": None, "hidden_act": None},
        {"rope_scaling": LLAMA_31_8B["rope_scaling"] | {"finetuned": True, "type": None, "partial_rotary_factor": 1.0}},
        {"use_sliding_window": False, "sliding_window": 32_768, "max_window_layers": 21},
        {"num_nextn_predict_layers": 1, "our_internal_version": "7b-alpha", "sequence_parallel": True},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_changes_nothing_passes(harmless):
    assert config_from_hf(LLAMA_31_8B | harmless) == config_from_hf(LLAMA_31_8B)


def test_unknown_fields_are_reported_once_by_name(caplog):
    for _ in range(2):
        config_from_hf(LLAMA_31_8B | {"zebra_version": 3, "author": "x", "use_cache": True})
    assert [r.getMessage() for r in caplog.records if "zebra" in r.getMessage()] == [
        "config.json of a llama model has fields that are not known and not read: author, zebra_version. "
        "They are taken to change no result."
    ]


@pytest.mark.parametrize(
    "field", ["rms_norm_eps", "hidden_activation", "query_pre_attn_scalar", "rope_theta", "tie_word_embeddings"]
)
def test_a_null_field_means_the_default(field):
    without = {key: value for key, value in GEMMA_3_1B.items() if key != field}
    assert config_from_hf(without | {field: None}) == config_from_hf(without)


@pytest.mark.parametrize("field", ["attn_logit_softcapping", "final_logit_softcapping", "eos_token_id"])
def test_some_nulls_say_that_there_is_none(field):
    hf = GEMMA_3_1B | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", field: None}
    for other in ("rope_local_base_freq", "sliding_window_pattern"):
        del hf[other]
    names = {"attn_logit_softcapping": "attention_softcap", "final_logit_softcapping": "final_softcap"}
    assert getattr(config_from_hf(hf), names.get(field, field)) is None


@pytest.mark.parametrize("missing", [[], None, ...])
def test_model_type_stands_in_for_the_architecture(missing):
    hf = {key: value for key, value in LLAMA_31_8B.items() if key != "architectures"}
    assert config_from_hf(hf if missing is ... else hf | {"architectures": missing}) == config_from_hf(LLAMA_31_8B)
    assert config_from_hf(LLAMA_31_8B | {"architectures": ["LLaMAForCausalLM"]}) == config_from_hf(LLAMA_31_8B)


def gemma_3_4b(**text) -> dict:
    """google/gemma-3-4b-it, as published."""
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
            **text,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "num_hidden_layers": 27},
    }


def test_a_language_model_inside_another_class():
    """What text_config leaves out is the default of its class; the outer end of text counts."""
    config = config_from_hf(gemma_3_4b())
    assert (config.architecture, config.vocab_size, config.max_position) == ("Gemma3ForCausalLM", 262_208, 131_072)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert config.eos_token_id == (1, 106) and config.tied_embeddings
    assert config.layers[4:6] == (Layer(1024, Rope(1e4)), Layer(None, Rope(1e6, "linear", 8.0)))
    assert config_from_hf(config_to_hf(config, jnp.bfloat16)) == config  # As a class of its own.
    assert not config_from_hf(gemma_3_4b() | {"tie_word_embeddings": False}).tied_embeddings


@pytest.mark.parametrize(
    ("outer", "text", "message"),
    [
        ({"text_config": None}, {}, "must hold its language model's fields in 'text_config'"),
        ({}, {"model_type": "gemma3n_text"}, "must be Gemma3ForCausalLM; .* is of 'gemma3n_text'"),
        ({"quantization_config": {"quant_method": "fp8"}}, {}, "'quantization_config'.*plain floats"),
        ({}, {"num_experts": 8}, "'num_experts' = 8.*experts"),
    ],
)
def test_what_is_refused_inside_another_class(outer, text, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf(gemma_3_4b(**text) | outer)


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


def yarn(max_position: int = 40_960, **scaling) -> tuple[int, Rope]:
    config = config_from_hf(
        LLAMA_31_8B | {"max_position_embeddings": max_position, "rope_scaling": {"rope_type": "yarn", **scaling}}
    )
    return config.max_position, config.layers[0].rope


def test_yarn_sets_the_context():
    """factor × the trained context, whatever max_position_embeddings says; the factor from both where it is null."""
    assert yarn(factor=4.0, original_max_position_embeddings=32_768)[0] == 131_072
    assert yarn(max_position=131_072, factor=4.0, original_max_position_embeddings=32_768)[0] == 131_072
    assert yarn(factor=4.0)[0] == 4 * 40_960
    context, rope = yarn(max_position=131_072, factor=None, original_max_position_embeddings=32_768)
    assert context == 131_072 and rope.factor == 4.0
    hf = LLAMA_31_8B | {"original_max_position_embeddings": 16_384}
    assert config_from_hf(hf | {"rope_scaling": {"type": "yarn", "factor": 2.0}}).max_position == 32_768


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0.1 * np.log(4.0) + 1.0),
        ({"attention_factor": 1.5}, 1.5),
        ({"attention_factor": 1.5, "mscale": 2.0, "mscale_all_dim": 1.0}, 1.5),
        ({"attn_factor": 0.8782488562869419}, 1.0),
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 1.0),
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, (0.2 * np.log(4.0) + 1.0) / (0.1 * np.log(4.0) + 1.0)),
        ({"mscale": 2.0}, 0.1 * np.log(4.0) + 1.0),  # Alone it is not read.
        ({"mscale": 1.0, "mscale_all_dim": 0}, 0.1 * np.log(4.0) + 1.0),
    ],
)
def test_yarn_attention_factor(fields, expected):
    _, rope = yarn(factor=4.0, original_max_position_embeddings=32_768, **fields)
    assert rope.attention_factor == pytest.approx(expected, rel=1e-12)


def test_yarn_refuses_two_attention_factors():
    with pytest.raises(ValueError, match="'attention_factor' = 1.1, the whole factor, or 'attn_factor' = 0.9"):
        yarn(factor=4.0, attention_factor=1.1, attn_factor=0.9)


def test_yarn_may_blend_between_fractions_of_dimensions():
    """Reference: _compute_yarn_parameters of transformers 5.24.0, written out."""
    _, rope = yarn(factor=4.0, original_max_position_embeddings=4096, truncate=False)
    assert not rope.truncate and config_from_hf(config_to_hf(config_of(rope), jnp.float32)).layers[0].rope == rope
    dims, theta = 128, 500_000.0
    low, high = (dims * np.log(4096 / (turns * 2 * np.pi)) / (2 * np.log(theta)) for turns in (32, 1))
    plain = theta ** -(np.arange(0, dims, 2) / dims)
    divided = np.clip((np.arange(dims // 2) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(rope.inverse_frequencies(dims), plain * (1 - divided) + plain / 4 * divided, rtol=1e-6)
    whole = dataclasses.replace(rope, truncate=True).inverse_frequencies(dims)
    assert not np.allclose(rope.inverse_frequencies(dims), whole, rtol=1e-3)


def config_of(rope: Rope):
    config = config_from_hf(LLAMA_31_8B)
    layers = tuple(dataclasses.replace(layer, rope=rope) for layer in config.layers)
    return dataclasses.replace(config, layers=layers, max_position=int(rope.factor * rope.original_max_position))


@pytest.mark.parametrize(
    ("scaling", "longest", "context"), [({"type": "linear", "factor": 4.0}, 16_384, 16_384), (None, 16_384, 4096)]
)
def test_a_linear_rope_reaches_as_far_as_max_sequence_length(scaling, longest, context):
    """As Vicuna 1.5 16k is published: 4,096 positions, linear by 4, max_sequence_length 16,384."""
    hf = {"max_position_embeddings": 4096, "rope_scaling": scaling, "max_sequence_length": longest}
    assert config_from_hf(LLAMA_31_8B | hf).max_position == context


def test_dual_chunk_attention_is_served_within_its_first_chunk():
    hf = {key: value for key, value in LLAMA_31_8B.items() if key != "mlp_bias"}
    hf |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_scaling": None}
    chunks = {"chunk_size": 262_144, "local_size": 8192, "original_max_position_embeddings": 262_144}
    long = hf | {"max_position_embeddings": 1_010_000, "dual_chunk_attention_config": chunks}
    assert config_from_hf(long).max_position == 253_952
