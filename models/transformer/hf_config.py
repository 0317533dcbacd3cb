"""config.json of the published architectures ↔ `TransformerConfig`.

Read in the older style (`rope_theta`, `rope_scaling`) and the newer (`rope_parameters`), written in the
older, which every tool reads. What a field that nobody reads means is said in `hf_fields`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from flexjax.nn import Rope
from flexjax.refusal import Refusal
from models.transformer.config import Layer, TransformerConfig
from models.transformer.hf_fields import check_unread
from models.transformer.hf_published import MODEL_TYPES, NULL_IS_A_VALUE, PUBLISHED, SPELLINGS, WRAPPERS, Fields
from models.transformer.hf_rope import rope_from_hf, scaling_to_hf

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}

# Fields that every architecture must have, unless its defaults say otherwise.
REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip

# Fields of a class around a language model that say how it sees and hears.
_SENSES = re.compile(r"vision|image|video|audio|projector|spatial|^mm_|^[be]oi_|^text_config$|^ignore_index$")


def architecture_of(hf: Mapping[str, Any]) -> str:
    """The published class of a parsed config.json: its one architecture, or where it names none that of its
    model_type. Refusal where this family serves no such class."""
    names = hf.get("architectures") or [MODEL_TYPES.get(str(hf.get("model_type")), "")]
    name = SPELLINGS.get(str(names[0]), str(names[0]))
    if len(names) != 1 or (name not in PUBLISHED and name not in WRAPPERS):
        raise Refusal(
            f"'architectures' in config.json must name one of {', '.join((*PUBLISHED, *WRAPPERS))}, or where there is "
            f"none 'model_type' one of {', '.join(MODEL_TYPES)}; got {hf.get('architectures')!r} and "
            f"{hf.get('model_type')!r}."
        )
    return name


def _language_model(hf: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The architecture and config of the language model alone, taken out of the class around it where there is one."""
    outer = architecture_of(hf)
    if outer in PUBLISHED:
        return outer, hf
    text = hf.get("text_config")
    if not isinstance(text, Mapping):
        raise Refusal(f"config.json of {outer} must hold its language model's fields in 'text_config'; got {text!r}.")
    named = text.get("architectures") or [MODEL_TYPES.get(str(text.get("model_type")), text.get("model_type"))]
    name = WRAPPERS[outer][0] if named == [None] else named[0]
    if len(named) != 1 or name not in WRAPPERS[outer]:
        raise Refusal(
            f"The language model inside {outer} must be {' or '.join(WRAPPERS[outer])}; 'text_config' in config.json "
            f"is of {named[0]!r}."
        )
    published = PUBLISHED[name]
    passed = {key for key in hf if _SENSES.search(key)} | set(REQUIRED) | set(published.defaults)
    check_unread(hf, passed, model_type=str(hf.get("model_type", outer)), neutral=published.neutral)
    inside = {key: value for key, value in text.items() if value is not None or key in NULL_IS_A_VALUE}
    ends = {key: hf[key] for key in ("bos_token_id", "eos_token_id") if hf.get(key) is not None}
    tied = {"tie_word_embeddings": hf.get("tie_word_embeddings")}
    return name, {**tied, **published.sizes, **inside, **ends}


def config_from_hf(hf: Mapping[str, Any]) -> TransformerConfig:
    """The config of a parsed config.json, of the language model alone where that stands inside another class.

    Raises Refusal for a missing field, and for one that the forward pass would need and cannot get.
    """
    architecture, hf = _language_model(hf)
    published = PUBLISHED[architecture]
    fields = Fields(hf, published)
    d_model, num_heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    layers = _layers(fields, fields.get("max_position_embeddings"))
    attention_bias = bool(fields.optional("attention_bias"))
    biases = {"qkv_bias": attention_bias, "out_bias": attention_bias, "mlp_bias": bool(fields.optional("mlp_bias"))}
    eos = fields.get("eos_token_id")
    config = TransformerConfig(
        architecture=architecture,
        vocab_size=fields.get("vocab_size"),
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=fields.optional("num_key_value_heads") or num_heads,
        head_dim=fields.optional("head_dim") or d_model // num_heads,
        d_ff=fields.get("intermediate_size") or 4 * d_model,
        max_position=_context(fields, layers),
        layers=layers,
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


def _context(fields: Fields, layers: tuple[Layer, ...]) -> int:
    """The longest context in tokens.

    A yarn rope sets it: factor × the trained context, as vLLM takes it, where published files keep the trained one in
    `max_position_embeddings`. A linear one stretches it likewise as far as `max_sequence_length` says. Dual chunk
    attention is plain attention within its first chunk, so that is where it ends here.
    """
    context = fields.get("max_position_embeddings")
    stretched = [rope for layer in layers if (rope := layer.rope) and rope.scaling in ("yarn", "linear")]
    if stretched and stretched[0].scaling == "yarn":
        context = int(stretched[0].factor * stretched[0].original_max_position)
    elif stretched:
        longest = fields.hf.get("max_sequence_length") or 0
        context = max(context, min(int(stretched[0].factor * context), longest))
    chunks = fields.optional("dual_chunk_attention_config")
    return min(context, chunks["chunk_size"] - chunks["local_size"]) if chunks else context


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
    trained = fields.get("original_max_position_embeddings")

    def read(parameters: Mapping[str, Any] | None, theta: float) -> Rope:
        given = parameters if trained is None else {**(parameters or {}), "original_max_position_embeddings": trained}
        return rope_from_hf(given, theta, max_position)

    def both(parameters: Mapping[str, Any]) -> tuple[Rope, Rope]:
        by_kind = parameters if "full_attention" in parameters else {"full_attention": parameters}
        full = read(by_kind["full_attention"], theta)
        if "sliding_attention" in by_kind or local_theta is not None:
            return full, read(by_kind.get("sliding_attention"), local_theta or theta)
        return full, full

    older, newer = fields.get("rope_scaling"), fields.get("rope_parameters")
    for parameters in (older, newer):
        if parameters is not None and not isinstance(parameters, Mapping):
            raise Refusal(f"The rope scaling in config.json must be an object; it is {parameters!r}.")
    if older and newer and both(older) != both(newer):
        raise Refusal(
            f"config.json has both 'rope_scaling' = {older!r} and 'rope_parameters' = {newer!r}. Remove the wrong one."
        )
    return both(newer or older or {})


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
