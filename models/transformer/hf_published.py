"""The published architectures, as data: what each fixes, which fields it reads, and what stands around it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flexjax.refusal import Refusal
from models.transformer.hf_fields import check_unread

# Fields whose null says that there is no such thing; elsewhere null says the same as a field that is left out.
NULL_IS_A_VALUE = frozenset(
    {"sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "bos_token_id", "eos_token_id"}
)


def _whole_from(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0


# Names of fields → whether a value is one of that kind, and the kind. Null is left out, and has its own meaning.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    name: (holds, kind)
    for names, holds, kind in (
        (
            "vocab_size hidden_size num_hidden_layers num_attention_heads max_position_embeddings sliding_window "
            "sliding_window_pattern original_max_position_embeddings",
            _whole_from(1),
            "a whole number of at least 1",
        ),
        (
            "intermediate_size num_key_value_heads head_dim max_window_layers",
            _whole_from(0),
            "a whole number of at least 0",
        ),
        (
            "rms_norm_eps rope_theta rope_local_base_freq query_pre_attn_scalar attn_logit_softcapping "
            "final_logit_softcapping",
            _is_number,
            "a number of at least 0",
        ),
        ("hidden_act", lambda value: isinstance(value, str), "a text"),
        (
            "layer_types",
            lambda value: isinstance(value, list) and all(isinstance(kind, str) for kind in value),
            "a list of texts",
        ),
        (
            "dual_chunk_attention_config",
            lambda value: (
                isinstance(value, Mapping)
                and all(_whole_from(0)(value.get(name)) for name in ("chunk_size", "local_size"))
            ),
            "an object with whole numbers as 'chunk_size' and 'local_size'",
        ),
    )
    for name in names.split()
}


@dataclasses.dataclass(frozen=True)
class Published:
    """What an architecture fixes, which optional fields it reads, and their values when left out."""

    model_type: str
    defaults: Mapping[str, Any]
    sizes: Mapping[str, Any]  # What a config inside another leaves out where it is the published class's default.
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # Fields of TransformerConfig.
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)  # Llama's name → its own.
    ignored: frozenset[str] = frozenset()  # Fields that its published code does not read.
    neutral: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)  # See `hf_fields.NEUTRAL`.
    slides: Callable[["Fields", int], list[bool]] = lambda fields, num_layers: [False] * num_layers


class Fields:
    """The fields of one config.json, in Llama's names; `finish` complains about those that nobody took."""

    def __init__(self, hf: Mapping[str, Any], published: Published):
        self.hf, self.published = hf, published
        self.taken: set[str] = set()

    def file_name(self, name: str) -> str:
        return self.published.names.get(name, name)

    def get(self, name: str) -> Any:
        """The value, or the architecture's default when it is left out or null; Refusal where it has none, and for a
        value of another kind."""
        key = self.file_name(name)
        self.taken.add(key)
        value = self.hf.get(key)
        if value is None and not (key in self.hf and name in NULL_IS_A_VALUE):
            value = self.published.defaults.get(name)
        if value is None and name not in self.published.defaults:
            raise Refusal(f"config.json of a {self.published.model_type} model must have the field {key!r}.")
        holds, kind = _KINDS.get(name, (lambda value: True, ""))
        if value is not None and not holds(value):
            raise Refusal(f"{key!r} in config.json must be {kind}; it is {value!r}.")
        return value

    def optional(self, name: str) -> Any:
        """As `get`, but None where the architecture does not read such a field."""
        return self.get(name) if name in self.published.defaults else None

    def finish(self) -> None:
        check_unread(
            self.hf,
            self.taken | self.published.ignored,
            model_type=self.published.model_type,
            neutral=self.published.neutral,
        )


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


_LLAMA = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "original_max_position_embeddings": None,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
_QWEN = _LLAMA | {
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
    "dual_chunk_attention_config": None,
}
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
_GEMMA_IGNORED = frozenset({"hidden_act", "sliding_window_size"})


def _sizes(vocab: int, d_model: int, d_ff: int, layers: int, heads: int, kv_heads: int, context: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": d_model,
        "intermediate_size": d_ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
    }


# Reference: the defaults of each configuration class of transformers 4.57.1.
PUBLISHED: dict[str, Published] = {
    "LlamaForCausalLM": Published(
        "llama",
        _LLAMA | {"attention_bias": False, "mlp_bias": False},
        _sizes(32_000, 4096, 11_008, 32, 32, 32, 2048) | {"bos_token_id": 1, "eos_token_id": 2},
    ),
    "MistralForCausalLM": Published(
        "mistral",
        _LLAMA | {"sliding_window": 4096, "layer_types": None},
        _sizes(32_000, 4096, 14_336, 32, 32, 8, 131_072) | {"bos_token_id": 1, "eos_token_id": 2},
        slides=_all_sliding,
    ),
    "Qwen2ForCausalLM": Published(
        "qwen2",
        _QWEN,
        _sizes(151_936, 4096, 22_016, 32, 32, 32, 32_768),
        {"qkv_bias": True},
        ignored=frozenset({"attention_bias"}),
        slides=_last_sliding,
    ),
    "Qwen3ForCausalLM": Published(
        "qwen3",
        _QWEN | {"head_dim": 128, "attention_bias": False},
        _sizes(151_936, 4096, 22_016, 32, 32, 32, 32_768),
        {"qk_norm": True},
        slides=_last_sliding,
    ),
    "Gemma2ForCausalLM": Published(
        "gemma2",
        _GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        _sizes(256_000, 2304, 9216, 26, 8, 4, 8192) | {"bos_token_id": 2, "eos_token_id": 1},
        _GEMMA_NETWORK,
        _GEMMA_NAMES,
        _GEMMA_IGNORED,
        slides=_alternating,
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
        _sizes(262_208, 2304, 9216, 26, 8, 4, 131_072) | {"bos_token_id": 2, "eos_token_id": 1},
        _GEMMA_NETWORK | {"qk_norm": True},
        _GEMMA_NAMES,
        _GEMMA_IGNORED,
        slides=_all_but_every_nth,
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
        {},
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
        neutral={
            "layer_norm_type": ("layer_norm", "layernorm"),
            "norm_type": ("layer_norm", "layernorm"),
            "position_embedding_type": ("absolute", "learned", "learned_absolute"),
            "scale_attn_by_inverse_layer_idx": (False,),
        },
    ),
}

# Another spelling of a published name, from before the published class had its own.
SPELLINGS = {"LLaMAForCausalLM": "LlamaForCausalLM"}  # decapoda-research's conversions of Llama 1.

# A class with a language model of ours inside → the architectures that its text_config can have, the usual one first.
WRAPPERS: dict[str, tuple[str, ...]] = {
    "Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM",),
    "Mistral3ForConditionalGeneration": ("MistralForCausalLM",),
    "LlavaForConditionalGeneration": ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"),
}
# The model_type of a config.json → its architecture, where it names none.
MODEL_TYPES: dict[str, str] = {published.model_type: name for name, published in PUBLISHED.items()} | {
    "gemma3": "Gemma3ForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
}
