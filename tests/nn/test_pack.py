"""The packed transformer against the plain one, and its rows against each other."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flexjax.kernels.matmul import cpu
from flexjax.nn import quantize_weights, quantized
from models.transformer import Layer, Rope, TransformerConfig, build, load, save

pytestmark = pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")
LLAMA = TransformerConfig(
    "LlamaForCausalLM", vocab_size=96, d_model=64, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=96,
    max_position=64, layers=(Layer(rope=Rope()),) * 2,
)  # fmt: skip
CONFIGS = {
    "llama": LLAMA,
    "tied": dataclasses.replace(LLAMA, tied_embeddings=True, activation="gelu"),
    "gemma": dataclasses.replace(
        LLAMA, tied_embeddings=True, post_norms=True, norm_offset=1.0, activation="gelu_tanh", qk_norm=True,
        final_softcap=20.0, scaled_embeddings=True,
    ),
    "gpt": dataclasses.replace(
        LLAMA, norm="layer", gated_mlp=False, mlp_bias=True, qkv_bias=True, out_bias=True, activation="gelu_tanh",
        learned_positions=True, layers=(Layer(),) * 2,
    ),
}  # fmt: skip
TOKENS = jnp.arange(12, dtype=jnp.int32)[None]


@nnx.jit
def logits(model):
    return model.logits(model.dense(TOKENS)[0])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("weights", [None, "int8", "int4"])
def test_packed_logits_are_those_of_the_plain_model(weights, name):
    model = build(CONFIGS[name], dtype=jnp.float32, seed=3)
    if weights is not None:
        model = quantize_weights(model, weights)
    want, got = logits(model), logits(model.packed())
    np.testing.assert_allclose(got, want, atol=2e-5 * float(jnp.abs(want).max()))  # Other orders of float32 sums.


def test_rows_in_int8_stay_near():
    model = quantize_weights(build(LLAMA, dtype=jnp.bfloat16), "int8")
    want, got = logits(model), logits(model.packed(activation_dtype="int8"))
    # Each row adds an error of about its largest / 127 / √12 to each of fourteen products.
    assert 0 < jnp.sqrt(jnp.mean(jnp.square(got - want))) < 0.04 * jnp.std(want)


def test_stacked_layers_are_packed_one_by_one_and_packed_ones_stay():
    model = build(LLAMA, dtype=jnp.float32)
    packed = model.stacked().packed()
    np.testing.assert_array_equal(logits(packed), logits(model.packed()))
    assert packed.packed() is packed


# In a process of its own, whose heap nothing else has left its mark on, and which gives back every array when it is
# freed: what glibc's heap keeps differs by 40 MB from run to run. What compiling takes comes with the first round; of
# the second, only weights are left to count.
LOAD = """
import functools, sys
import jax.numpy as jnp
from flexjax.engine import EngineConfig
from flexjax.engine.device.step import packed
from flexjax.hardware import memory
from flexjax.nn import quantized
from models import transformer

for _ in range(2):
    model = None
    memory.trim()
    memory.reset_peak_rss()
    before = memory.rss_bytes()
    model = transformer.load(sys.argv[1], dtype=jnp.bfloat16, convert=functools.partial(quantized, name="int8"))
    model = packed(model, EngineConfig(weight_dtype="int8"), None, release=True)
print(memory.peak_rss_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from /proc")
def test_weights_are_rounded_and_packed_as_they_come(tmp_path):
    config = TransformerConfig(
        "LlamaForCausalLM", vocab_size=512, d_model=512, num_heads=8, num_kv_heads=8, head_dim=64, d_ff=2048,
        max_position=64, layers=(Layer(rope=Rope()),) * 12,
    )  # fmt: skip
    save(build(config, dtype=jnp.bfloat16), tmp_path)
    want = quantize_weights(build(config, dtype=jnp.bfloat16), "int8")
    got = load(tmp_path, dtype=jnp.bfloat16, convert=functools.partial(quantized, name="int8"))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(got), nnx.state(want))
    plain = (tmp_path / "model.safetensors").stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)],
        capture_output=True, text=True, check=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )  # fmt: skip
    # Half of it and a layer's copies; all as they were and packed would be 1.5 times as much.
    assert plain / 2 < int(done.stdout) < 0.75 * plain
