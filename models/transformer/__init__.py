"""Decoder-only transformers: Llama, Mistral, Qwen, Gemma, GPT-2 (a `flexjax.families.Family`)."""

from typing import Any

from flax import nnx

from flexjax.nn import Rope
from models.transformer.config import Layer, TransformerConfig
from models.transformer.hf_config import config_from_hf, config_to_hf
from models.transformer.hf_published import MODEL_TYPES
from models.transformer.modeling import Transformer
from models.transformer.params import load, save
from models.transformer.sizes import SIZES

__all__ = [
    # The network, and what distinguishes one from another.
    "Layer",
    "Rope",
    "Transformer",
    "TransformerConfig",
    # The family's face.
    "MODEL_TYPES",
    "SIZES",
    "build",
    "config_from_hf",
    "config_to_hf",
    "load",
    "save",
]


def build(config: TransformerConfig, *, dtype: Any, seed: int = 0) -> Transformer:
    """A model with fresh random weights, in `dtype`."""
    return Transformer(config, dtype=dtype, rngs=nnx.Rngs(seed))
