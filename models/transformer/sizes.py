"""Published sizes by name, as their config.json states them: enough to compile a model, with no weights at hand."""

from collections.abc import Mapping
from typing import Any


def _llama3(**sizes: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128_256,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        **sizes,
    }


def _qwen3(**sizes: Any) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151_936,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rope_theta": 1_000_000.0,
        **sizes,
    }


def _gemma3(**sizes: Any) -> dict[str, Any]:
    """The text model."""
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "vocab_size": 262_208,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 256,
        **sizes,
    }


def _gpt2(**sizes: Any) -> dict[str, Any]:
    return {"architectures": ["GPT2LMHeadModel"], "vocab_size": 50_257, "n_positions": 1024, **sizes}


SIZES: Mapping[str, Mapping[str, Any]] = {
    # Reference: Llama 3 Herd of Models (arXiv:2407.21783), table 3, and meta-llama's config.json files.
    "llama3-8b": _llama3(hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32),
    "llama3-70b": _llama3(hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80, num_attention_heads=64),
    "llama3-405b": _llama3(
        hidden_size=16_384,
        intermediate_size=53_248,
        num_hidden_layers=126,
        num_attention_heads=128,
        max_position_embeddings=131_072,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    # Reference: Qwen3 Technical Report (arXiv:2505.09388), table 1, and Qwen's config.json files.
    "qwen3-0.6b": _qwen3(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, tie_word_embeddings=True
    ),
    "qwen3-1.7b": _qwen3(
        hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, tie_word_embeddings=True
    ),
    "qwen3-4b": _qwen3(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, tie_word_embeddings=True
    ),
    "qwen3-8b": _qwen3(hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32),
    "qwen3-14b": _qwen3(hidden_size=5120, intermediate_size=17_408, num_hidden_layers=40, num_attention_heads=40),
    "qwen3-32b": _qwen3(hidden_size=5120, intermediate_size=25_600, num_hidden_layers=64, num_attention_heads=64),
    # Reference: Gemma 3 Technical Report (arXiv:2503.19786), and google's config.json files.
    "gemma3-1b": _gemma3(
        vocab_size=262_144,
        hidden_size=1152,
        intermediate_size=6912,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=32_768,
        rope_scaling=None,
        sliding_window=512,
    ),
    "gemma3-4b": _gemma3(
        hidden_size=2560, intermediate_size=10_240, num_hidden_layers=34, num_attention_heads=8, num_key_value_heads=4
    ),
    "gemma3-12b": _gemma3(
        hidden_size=3840, intermediate_size=15_360, num_hidden_layers=48, num_attention_heads=16, num_key_value_heads=8
    ),
    "gemma3-27b": _gemma3(
        hidden_size=5376,
        intermediate_size=21_504,
        num_hidden_layers=62,
        num_attention_heads=32,
        num_key_value_heads=16,
        head_dim=128,
        query_pre_attn_scalar=168,
    ),
    # Reference: Mistral 7B (arXiv:2310.06825), table 1: version 0.1, with its window.
    "mistral-7b": {
        "architectures": ["MistralForCausalLM"],
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "sliding_window": 4096,
    },
    # Reference: Radford et al. 2019, table 2.
    "gpt2": _gpt2(n_embd=768, n_layer=12, n_head=12),
    "gpt2-medium": _gpt2(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": _gpt2(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": _gpt2(n_embd=1600, n_layer=48, n_head=25),
}
