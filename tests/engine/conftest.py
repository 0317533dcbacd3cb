"""A tiny Llama with random float32 weights, sharp enough that greedy choices are not near ties."""

import jax.numpy as jnp
import pytest

from models.transformer import Layer, Rope, TransformerConfig, build


@pytest.fixture(scope="session")
def tiny_model():
    config = TransformerConfig(
        architecture="LlamaForCausalLM",
        vocab_size=96,
        d_model=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        d_ff=64,
        max_position=128,
        layers=(Layer(rope=Rope()), Layer(window=24, rope=Rope())),
    )
    return build(config, dtype=jnp.float32, seed=1)
