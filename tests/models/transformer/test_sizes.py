import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from flexjax import families
from models.transformer import SIZES, build, config_from_hf

# Parameters as published: model cards and papers, rounded as they round.
BILLIONS = {
    "llama3-8b": 8.03,
    "llama3-70b": 70.6,
    "llama3-405b": 405.9,
    "qwen3-0.6b": 0.60,
    "qwen3-1.7b": 1.7,
    "qwen3-4b": 4.0,
    "qwen3-8b": 8.2,
    "qwen3-14b": 14.8,
    "qwen3-32b": 32.8,
    "gemma3-1b": 1.00,
    "gemma3-4b": 3.88,
    "gemma3-12b": 11.77,
    "gemma3-27b": 27.01,
    "mistral-7b": 7.24,
    "gpt2": 0.124,
    "gpt2-medium": 0.355,
    "gpt2-large": 0.774,
    "gpt2-xl": 1.558,
}


def test_every_size_is_checked():
    assert set(BILLIONS) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_a_size_has_as_many_parameters_as_published(name):
    config = config_from_hf(dict(SIZES[name]))
    # One repetition of the layer pattern is traced, not the whole depth.
    model = nnx.eval_shape(lambda: build(config, dtype=jnp.bfloat16).stacked())
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model)))
    decimals = len(str(BILLIONS[name]).partition(".")[2])
    assert round(count / 1e9, decimals) == BILLIONS[name]


def test_sizes_are_found_by_name():
    family, hf = families.family_of("llama3-8b")
    assert family.config_from_hf(dict(hf)).d_model == 4096


def test_an_unknown_size_names_the_nearest():
    with pytest.raises(ValueError, match="'llama3-9b' is neither.*llama3-8b"):
        families.family_of("llama3-9b")
