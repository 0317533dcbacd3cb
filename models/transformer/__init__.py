"""Decoder-only transformers: Llama, Mistral, Qwen, Gemma, GPT-2 (a `flexjax.causal_lm.Family`)."""

from typing import Any

from flax import nnx

from models.transformer.config import Layer, TransformerConfig
from models.transformer.modeling import Transformer
from models.transformer.rope import Rope

__all__ = ["Layer", "Rope", "Transformer", "TransformerConfig", "build"]


def build(config: TransformerConfig, *, dtype: Any, seed: int = 0) -> Transformer:
    """A model with fresh random weights, in `dtype`."""
    return Transformer(config, dtype=dtype, rngs=nnx.Rngs(seed))
