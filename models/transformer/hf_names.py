"""How the published checkpoints name and lay out each parameter, as tables.

A layout lists the stored axes, grouped as they are flattened: "NH D" is a matrix of N·H rows and D columns.
V vocabulary, P positions, D model width, N query heads, K key/value heads, H head dim, F feed-forward width.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

AXES = {
    "V": "vocab",
    "P": "position",
    "D": "embed",
    "N": "heads",
    "K": "kv_heads",
    "H": "head_dim",
    "F": "mlp",
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a parameter lies in a checkpoint: tensor name ({} is the layer), layout, and which of `parts`
    equal pieces of the last axis it is."""

    name: str
    layout: str
    part: int = 0
    parts: int = 1

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of the whole stored tensor."""
        *first, last = (math.prod(sizes[AXES[a]] for a in group) for group in self.layout.split())
        return (*first, last * self.parts)

    def read(self, stored: np.ndarray, axes: tuple[str, ...], sizes: Mapping[str, int]) -> np.ndarray:
        """The parameter, its axes in the order `axes`; a view."""
        width = stored.shape[-1] // self.parts
        piece = stored[..., self.part * width : (self.part + 1) * width]
        order = [AXES[a] for a in self.layout if a != " "]
        return piece.reshape([sizes[a] for a in order]).transpose([order.index(a) for a in axes])

    def write(self, value: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
        """The stored piece of a parameter whose axes are `axes`."""
        order = [AXES[a] for a in self.layout if a != " "]
        groups = self.layout.split()
        sizes = dict(zip(axes, value.shape, strict=True))
        return value.transpose([axes.index(a) for a in order]).reshape(
            [math.prod(sizes[AXES[a]] for a in group) for group in groups]
        )


@dataclasses.dataclass(frozen=True)
class Naming:
    """One checkpoint convention: our parameter path → where it is stored."""

    prefix: str  # Left out by checkpoints of the bare network.
    parameters: Mapping[str, Stored]
    buffers: tuple[str, ...]  # Endings of tensors that hold no parameter.


_LLAMA = {
    "embedding.table": Stored("model.embed_tokens.weight", "V D"),
    "final_norm.scale": Stored("model.norm.weight", "D"),
    "unembedding.weight": Stored("lm_head.weight", "V D"),
    "blocks.attention_norm.scale": Stored("model.layers.{}.input_layernorm.weight", "D"),
    "blocks.attention.query.weight": Stored("model.layers.{}.self_attn.q_proj.weight", "NH D"),
    "blocks.attention.key.weight": Stored("model.layers.{}.self_attn.k_proj.weight", "KH D"),
    "blocks.attention.value.weight": Stored("model.layers.{}.self_attn.v_proj.weight", "KH D"),
    "blocks.attention.out.weight": Stored("model.layers.{}.self_attn.o_proj.weight", "D NH"),
    "blocks.attention.query.bias": Stored("model.layers.{}.self_attn.q_proj.bias", "NH"),
    "blocks.attention.key.bias": Stored("model.layers.{}.self_attn.k_proj.bias", "KH"),
    "blocks.attention.value.bias": Stored("model.layers.{}.self_attn.v_proj.bias", "KH"),
    "blocks.attention.out.bias": Stored("model.layers.{}.self_attn.o_proj.bias", "D"),
    "blocks.attention.query_norm.scale": Stored("model.layers.{}.self_attn.q_norm.weight", "H"),
    "blocks.attention.key_norm.scale": Stored("model.layers.{}.self_attn.k_norm.weight", "H"),
    "blocks.mlp_norm.scale": Stored("model.layers.{}.post_attention_layernorm.weight", "D"),
    "blocks.mlp.gate.weight": Stored("model.layers.{}.mlp.gate_proj.weight", "F D"),
    "blocks.mlp.up.weight": Stored("model.layers.{}.mlp.up_proj.weight", "F D"),
    "blocks.mlp.down.weight": Stored("model.layers.{}.mlp.down_proj.weight", "D F"),
    "blocks.mlp.gate.bias": Stored("model.layers.{}.mlp.gate_proj.bias", "F"),
    "blocks.mlp.up.bias": Stored("model.layers.{}.mlp.up_proj.bias", "F"),
    "blocks.mlp.down.bias": Stored("model.layers.{}.mlp.down_proj.bias", "D"),
}
_GEMMA = _LLAMA | {
    "blocks.attention_post_norm.scale": Stored("model.layers.{}.post_attention_layernorm.weight", "D"),
    "blocks.mlp_norm.scale": Stored("model.layers.{}.pre_feedforward_layernorm.weight", "D"),
    "blocks.mlp_post_norm.scale": Stored("model.layers.{}.post_feedforward_layernorm.weight", "D"),
}
_GPT2 = {
    "embedding.table": Stored("transformer.wte.weight", "V D"),
    "position_embedding.table": Stored("transformer.wpe.weight", "P D"),
    "final_norm.scale": Stored("transformer.ln_f.weight", "D"),
    "final_norm.bias": Stored("transformer.ln_f.bias", "D"),
    "unembedding.weight": Stored("lm_head.weight", "V D"),
    "blocks.attention_norm.scale": Stored("transformer.h.{}.ln_1.weight", "D"),
    "blocks.attention_norm.bias": Stored("transformer.h.{}.ln_1.bias", "D"),
    "blocks.attention.query.weight": Stored("transformer.h.{}.attn.c_attn.weight", "D NH", 0, 3),
    "blocks.attention.key.weight": Stored("transformer.h.{}.attn.c_attn.weight", "D KH", 1, 3),
    "blocks.attention.value.weight": Stored("transformer.h.{}.attn.c_attn.weight", "D KH", 2, 3),
    "blocks.attention.out.weight": Stored("transformer.h.{}.attn.c_proj.weight", "NH D"),
    "blocks.attention.query.bias": Stored("transformer.h.{}.attn.c_attn.bias", "NH", 0, 3),
    "blocks.attention.key.bias": Stored("transformer.h.{}.attn.c_attn.bias", "KH", 1, 3),
    "blocks.attention.value.bias": Stored("transformer.h.{}.attn.c_attn.bias", "KH", 2, 3),
    "blocks.attention.out.bias": Stored("transformer.h.{}.attn.c_proj.bias", "D"),
    "blocks.mlp_norm.scale": Stored("transformer.h.{}.ln_2.weight", "D"),
    "blocks.mlp_norm.bias": Stored("transformer.h.{}.ln_2.bias", "D"),
    "blocks.mlp.up.weight": Stored("transformer.h.{}.mlp.c_fc.weight", "D F"),
    "blocks.mlp.up.bias": Stored("transformer.h.{}.mlp.c_fc.bias", "F"),
    "blocks.mlp.down.weight": Stored("transformer.h.{}.mlp.c_proj.weight", "F D"),
    "blocks.mlp.down.bias": Stored("transformer.h.{}.mlp.c_proj.bias", "D"),
}

_ROTARY = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
_LLAMA_NAMING = Naming("model.", _LLAMA, _ROTARY)
_GEMMA_NAMING = Naming("model.", _GEMMA, _ROTARY)
NAMING: dict[str, Naming] = {
    "LlamaForCausalLM": _LLAMA_NAMING,
    "MistralForCausalLM": _LLAMA_NAMING,
    "Qwen2ForCausalLM": _LLAMA_NAMING,
    "Qwen3ForCausalLM": _LLAMA_NAMING,
    "Gemma2ForCausalLM": _GEMMA_NAMING,
    "Gemma3ForCausalLM": _GEMMA_NAMING,
    "GPT2LMHeadModel": Naming("transformer.", _GPT2, (".attn.bias", ".attn.masked_bias")),
}


@dataclasses.dataclass(frozen=True)
class Around:
    """Where the tensors of a language model lie in the checkpoint of a class around it."""

    inside: Mapping[str, str]  # How a stored name begins → how it begins in the language model's own checkpoint.
    beside: tuple[str, ...]  # How the names of tensors begin that are not the language model's.

    def own_name(self, stored: str) -> str | None:
        """The language model's name of a stored tensor; None where it is not its."""
        if stored.startswith(self.beside):
            return None
        for begin, own in self.inside.items():
            if stored.startswith(begin):
                return own + stored.removeprefix(begin)
        return stored


# Written by transformers before and since 4.52.
_VISION = Around(
    {"language_model.": "", "model.language_model.": "model."},
    ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
)
AROUND: dict[str, Around] = {
    "Gemma3ForConditionalGeneration": _VISION,
    "Mistral3ForConditionalGeneration": _VISION,
    "LlavaForConditionalGeneration": _VISION,
}
