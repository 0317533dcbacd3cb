"""config.json of the published architectures ↔ `TransformerConfig`.

Read in the older style (`rope_theta`, `rope_scaling`) and the newer (`rope_parameters`), written in the
older, which every tool reads. A field that is not understood and could change the result is an error.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from flexjax.refusal import Refusal
from models.transformer.config import Layer, TransformerConfig
from models.transformer.hf_rope import rope_from_hf, scaling_to_hf
from models.transformer.rope import Rope

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

# Fields that do not change a forward pass.
HARMLESS = frozenset(
    "architectures model_type dtype torch_dtype transformers_version transformers.js_config use_cache "
    "cache_implementation attn_implementation pad_token_id sep_token_id decoder_start_token_id initializer_range "
    "attention_dropout hidden_dropout attn_pdrop embd_pdrop resid_pdrop pretraining_tp reorder_and_upcast_attn "
    "output_attentions output_hidden_states return_dict return_dict_in_generate torchscript use_bfloat16 "
    "is_decoder is_llama_config summary_type summary_use_proj summary_activation summary_proj_to_labels "
    "summary_first_dropout task_specific_params n_ctx gradient_checkpointing id2label label2id num_labels "
    "problem_type finetuning_task tokenizer_class prefix name_or_path unsloth_fixed unsloth_version".split()
)

# Fields served at one value only.
ONLY = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "cross_attention_hidden_size": None,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
    "use_mrope": False,
    "use_bidirectional_attention": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}


class Fields:
    """The fields of one config.json, in Llama's names; `finish` complains about those that nobody took."""

    def __init__(self, hf: Mapping[str, Any], published: "Published"):
        self.hf, self.published = hf, published
        self.taken: set[str] = set()

    def file_name(self, name: str) -> str:
        return self.published.names.get(name, name)

    def get(self, name: str) -> Any:
        """The value, or the architecture's default when it is left out; Refusal where it has none."""
        key = self.file_name(name)
        self.taken.add(key)
        value = self.hf.get(key, self.published.defaults.get(name))
        if value is None and name not in self.published.defaults:
            raise Refusal(f"config.json of a {self.published.model_type} model must have the field {key!r}.")
        return value

    def optional(self, name: str) -> Any:
        """As `get`, but None where the architecture does not read such a field."""
        return self.get(name) if name in self.published.defaults else None

    def finish(self) -> None:
        for key, value in self.hf.items():
            if key in self.taken or key in HARMLESS or key in self.published.ignored or key.startswith("_"):
                continue
            if value is None or (key in ONLY and value == ONLY[key]):
                continue
            way_out = f"only {ONLY[key]!r} is served" if key in ONLY else "it is not understood"
            raise Refusal(
                f"The field {key!r} = {value!r} in config.json of a {self.published.model_type} model could change "
                f"the result and {way_out}. If it does not matter, remove it from config.json."
            )


def _no_sliding(fields: Fields, num_layers: int) -> list[bool]:
    return [False] * num_layers


def _all_sliding(fields: Fields, num_layers: int) -> list[bool]:
    return [fields.optional("sliding_window") is not None] * num_layers


def _last_sliding(fields: Fields, num_layers: int) -> list[bool]:
    wanted = fields.optional("use_sliding_window") and fields.optional("sliding_window") is not None
    first = fields.optional("max_window_layers")
    return [bool(wanted) and index >= first for index in range(num_layers)]


def _alternating(fields: Fields, num_layers: int) -> list[bool]:
    return [index % 2 == 0 for index in range(num_layers)]


def _all_but_every_nth(fields: Fields, num_layers: int) -> list[bool]:
    period = fields.optional("sliding_window_pattern")
    return [(index + 1) % period != 0 for index in range(num_layers)]


@dataclasses.dataclass(frozen=True)
class Published:
    """What an architecture fixes, which optional fields it reads, and their values when left out."""

    model_type: str
    defaults: Mapping[str, Any]
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # Fields of TransformerConfig.
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)  # Llama's name → its own.
    ignored: frozenset[str] = frozenset()  # Fields that its published code does not read.
    slides: Callable[[Fields, int], list[bool]] = _no_sliding  # Where there is no `layer_types`.


_LLAMA = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
_QWEN = _LLAMA | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
_GEMMA = _LLAMA | {
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
}
_GEMMA_NETWORK = {"norm_offset": 1.0, "post_norms": True, "scaled_embeddings": True}
_GEMMA_NAMES = {"hidden_act": "hidden_activation"}

PUBLISHED: dict[str, Published] = {
    "LlamaForCausalLM": Published("llama", _LLAMA | {"attention_bias": False, "mlp_bias": False}),
    "MistralForCausalLM": Published("mistral", _LLAMA | {"sliding_window": 4096}, slides=_all_sliding),
    "Qwen2ForCausalLM": Published("qwen2", _QWEN, {"qkv_bias": True}, slides=_last_sliding),
    "Qwen3ForCausalLM": Published(
        "qwen3", _QWEN | {"head_dim": 128, "attention_bias": False}, {"qk_norm": True}, slides=_last_sliding
    ),
    "Gemma2ForCausalLM": Published(
        "gemma2",
        _GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        _GEMMA_NETWORK,
        _GEMMA_NAMES,
        frozenset({"hidden_act"}),
        _alternating,
    ),
    "Gemma3ForCausalLM": Published(
        "gemma3_text",
        _GEMMA
        | {
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "sliding_window_pattern": 6,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
        _GEMMA_NETWORK | {"qk_norm": True},
        _GEMMA_NAMES,
        frozenset({"hidden_act"}),
        _all_but_every_nth,
    ),
    "GPT2LMHeadModel": Published(
        "gpt2",
        {
            "intermediate_size": None,
            "hidden_act": "gelu_new",
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        {
            "gated_mlp": False,
            "norm": "layer",
            "qkv_bias": True,
            "out_bias": True,
            "mlp_bias": True,
            "learned_positions": True,
        },
        {
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "intermediate_size": "n_inner",
            "max_position_embeddings": "n_positions",
            "hidden_act": "activation_function",
            "rms_norm_eps": "layer_norm_epsilon",
        },
    ),
}


# Fields that every architecture must have, unless its defaults say otherwise.
REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip


def config_from_hf(hf: Mapping[str, Any]) -> TransformerConfig:
    """The config of a parsed config.json.

    Raises Refusal for a missing field, and for one that is not understood and could change the result.
    """
    names = hf.get("architectures") or []
    if len(names) != 1 or names[0] not in PUBLISHED:
        raise Refusal(f"'architectures' in config.json must be one of {', '.join(PUBLISHED)}; got {names!r}.")
    published = PUBLISHED[names[0]]
    fields = Fields(hf, published)
    d_model, num_heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    max_position = fields.get("max_position_embeddings")
    attention_bias = bool(fields.optional("attention_bias"))
    biases = {"qkv_bias": attention_bias, "out_bias": attention_bias, "mlp_bias": bool(fields.optional("mlp_bias"))}
    eos = fields.get("eos_token_id")
    config = TransformerConfig(
        architecture=names[0],
        vocab_size=fields.get("vocab_size"),
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=fields.optional("num_key_value_heads") or num_heads,
        head_dim=fields.optional("head_dim") or d_model // num_heads,
        d_ff=fields.get("intermediate_size") or 4 * d_model,
        max_position=max_position,
        layers=_layers(fields, max_position),
        activation=_activation(fields),
        norm_eps=float(fields.get("rms_norm_eps")),
        query_scalar=fields.optional("query_pre_attn_scalar"),
        attention_softcap=fields.optional("attn_logit_softcapping"),
        final_softcap=fields.optional("final_logit_softcapping"),
        tied_embeddings=bool(fields.get("tie_word_embeddings")),
        bos_token_id=fields.get("bos_token_id"),
        eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        **{**biases, **published.network},
    )
    fields.finish()
    return config


def _activation(fields: Fields) -> Any:
    name = fields.get("hidden_act")
    if name not in ACTIVATIONS:
        key = fields.file_name("hidden_act")
        raise Refusal(f"{key!r} in config.json must be one of {', '.join(ACTIVATIONS)}; got {name!r}.")
    return ACTIVATIONS[name]


def _layers(fields: Fields, max_position: int) -> tuple[Layer, ...]:
    num_layers = fields.get("num_hidden_layers")
    slides = fields.published.slides(fields, num_layers)
    kinds = fields.optional("layer_types")
    if kinds is not None:
        unknown = set(kinds) - {"full_attention", "sliding_attention"}
        if len(kinds) != num_layers or unknown:
            raise Refusal(
                f"'layer_types' in config.json must name full_attention or sliding_attention for each of the "
                f"{num_layers} layers; it has {len(kinds)} entries, among them {sorted(set(kinds))}."
            )
        slides = [kind == "sliding_attention" for kind in kinds]
    window = fields.optional("sliding_window")
    if any(slides) and (window is None or fields.optional("use_sliding_window") is False):
        raise Refusal(
            f"'layer_types' in config.json names sliding layers, so 'sliding_window' must be a number and "
            f"'use_sliding_window', where there is one, true; got sliding_window = {window!r}."
        )
    full, sliding = _ropes(fields, max_position)
    return tuple(Layer(window, sliding) if slide else Layer(None, full) for slide in slides)


def _ropes(fields: Fields, max_position: int) -> tuple[Rope | None, Rope | None]:
    """The ropes of full and of sliding layers."""
    if "rope_theta" not in fields.published.defaults:
        return None, None
    theta, local_theta = fields.get("rope_theta"), fields.optional("rope_local_base_freq")
    older, newer = fields.get("rope_scaling"), fields.get("rope_parameters")
    if older and newer and older != newer:
        raise Refusal(
            f"config.json has both 'rope_scaling' = {older!r} and 'rope_parameters' = {newer!r}. Remove the wrong one."
        )
    by_kind = newer if newer and "full_attention" in newer else {"full_attention": newer or older}
    full = rope_from_hf(by_kind["full_attention"], theta, max_position)
    if "sliding_attention" in by_kind or local_theta is not None:
        return full, rope_from_hf(by_kind.get("sliding_attention"), local_theta or theta, max_position)
    return full, full


def config_to_hf(config: TransformerConfig, dtype: Any) -> dict[str, Any]:
    """config.json for a config, read back as the same one; Refusal where the architecture cannot say it."""
    if config.architecture not in PUBLISHED:
        raise Refusal(f"The architecture must be one of {', '.join(PUBLISHED)}; got {config.architecture!r}.")
    published = PUBLISHED[config.architecture]
    slides = [layer.window is not None for layer in config.layers]
    full = next((layer for layer in config.layers if layer.window is None), config.layers[0])
    sliding = next((layer for layer in config.layers if layer.window is not None), config.layers[0])
    rope, sliding_rope = full.rope or Rope(), sliding.rope or Rope()
    usual = published.defaults["hidden_act"]  # Among several names of a function, the architecture's own.
    values = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "hidden_act": next(n for n in (usual, *ACTIVATIONS) if ACTIVATIONS[n] == config.activation),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": rope.theta,
        "rope_scaling": scaling_to_hf(rope),
        "rope_local_base_freq": sliding_rope.theta,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "query_pre_attn_scalar": config.query_scalar or config.head_dim,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.final_softcap,
        "use_sliding_window": any(slides),
        "sliding_window": sliding.window,
        "max_window_layers": (slides + [True]).index(True),
        "sliding_window_pattern": (slides + [False]).index(False) + 1,
        "layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides],
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_id) if isinstance(config.eos_token_id, tuple) else config.eos_token_id,
    }
    hf: dict[str, Any] = {"architectures": [config.architecture], "model_type": published.model_type}
    for name, value in values.items():
        if name in REQUIRED or name in published.defaults:
            hf[published.names.get(name, name)] = value
    hf["torch_dtype"] = jnp.dtype(dtype).name
    _check_same(config, config_from_hf(hf))
    return hf


def _check_same(config: TransformerConfig, read: TransformerConfig) -> None:
    lost = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(read, f.name)]
    if lost:
        pairs = ", ".join(f"{name} = {getattr(config, name)!r} (reads as {getattr(read, name)!r})" for name in lost)
        raise Refusal(f"config.json of {config.architecture} cannot say {pairs}. Choose an architecture that can.")
