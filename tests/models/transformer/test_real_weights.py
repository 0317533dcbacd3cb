"""A published model with real weights writes its published text.

karpathy's stories260K, in llama2.c's format: a 7-integer header, then float32 tensors with the layers
of each kind together, matrices [out, in], and the rope on adjacent pairs of dimensions.
"""

import json
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from flexjax.model import zeros
from flexjax.nn import layout_of
from models import transformer

# The beginning of the greedy text in llama2.c's doc/stories260K.md.
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)
BOS = 1


def half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head reordered from adjacent pairs (0, 1), (2, 3) … to halves, as Hugging Face has them."""
    out, inputs = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, inputs).swapaxes(1, 2).reshape(out, inputs)


def convert(path: Path, directory: Path) -> None:
    """Writes a llama2.c checkpoint as a Hugging Face directory."""
    data = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, max_position = struct.unpack("<7i", data[:28])
    values = np.frombuffer(data, "<f4", offset=28)
    kv_dim = dim * kv_heads // heads
    shapes = {
        "embed_tokens": (vocab, dim),
        "input_layernorm": (layers, dim),
        "self_attn.q_proj": (layers, dim, dim),
        "self_attn.k_proj": (layers, kv_dim, dim),
        "self_attn.v_proj": (layers, kv_dim, dim),
        "self_attn.o_proj": (layers, dim, dim),
        "post_attention_layernorm": (layers, dim),
        "mlp.gate_proj": (layers, hidden, dim),
        "mlp.down_proj": (layers, dim, hidden),
        "mlp.up_proj": (layers, hidden, dim),
        "norm": (dim,),
    }
    tensors = {}
    start = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        value = values[start : start + size].reshape(shape)
        start += size
        if name in ("embed_tokens", "norm"):
            tensors[f"model.{name}.weight"] = value
            continue
        for layer, weight in enumerate(value):
            if name.endswith(("q_proj", "k_proj")):
                weight = half_split(weight, heads if "q_proj" in name else kv_heads)
            tensors[f"model.layers.{layer}.{name}.weight"] = np.ascontiguousarray(weight)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": max_position,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    (directory / "config.json").write_text(json.dumps(config))


def pieces(path: Path) -> list[bytes]:
    """The tokens of a llama2.c tokenizer: after the longest length, a float score, a length and the bytes each."""
    data, start, found = path.read_bytes(), 4, []
    while start < len(data):
        (length,) = struct.unpack_from("<i", data, start + 4)
        found.append(data[start + 8 : start + 8 + length])
        start += 8 + length
    return found


@nnx.jit
def next_token(model, token, position, cache):
    hidden, cache = model.dense(token, position, cache)
    return model.logits(hidden).argmax(-1).astype(jnp.int32), cache


def test_stories260k_writes_its_story(shared_data, tmp_path):
    source = shared_data / "stories260K"
    convert(source / "stories260K.bin", tmp_path)
    model = transformer.load(tmp_path, dtype=jnp.float32)
    vocabulary = pieces(source / "tok512.bin")
    assert len(vocabulary) == model.config.vocab_size

    cache = zeros(layout_of(model).dense(1, 128, jnp.float32))
    token = jnp.full((1, 1), BOS, jnp.int32)
    text = b""
    for position in range(100):
        token, cache = next_token(model, token, jnp.full((1, 1), position, jnp.int32), cache)
        text += vocabulary[int(token[0, 0])]
    assert text.decode().lstrip().startswith(STORY)
