import jax.numpy as jnp
import pytest

from flexjax.engine import Engine, EngineConfig
from flexjax.kernels.matmul import cpu
from flexjax.nn import quantize_weights, weight_dtypes
from models.transformer import Layer, Rope, TransformerConfig, build

CONFIG = TransformerConfig(
    "LlamaForCausalLM", vocab_size=96, d_model=64, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=96,
    max_position=64, layers=(Layer(rope=Rope()),) * 2,
)  # fmt: skip


def test_arrays_say_what_weights_are():
    model = build(CONFIG, dtype=jnp.bfloat16)
    assert weight_dtypes(model) == {"bfloat16"}
    up = model.blocks[1].mlp.up.weight
    up.set_value(up[...].astype(jnp.float32))
    assert weight_dtypes(model) == {"bfloat16", "float32"}


@pytest.mark.parametrize(("form", "dtypes"), [("int8", {"int8"}), ("int4", {"int4"})])
def test_scales_do_not_count(form, dtypes):
    model = quantize_weights(build(CONFIG, dtype=jnp.bfloat16), form)
    assert dtypes <= weight_dtypes(model) <= dtypes | {"bfloat16", "int8"}
    assert "float32" not in weight_dtypes(model)


@pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")
@pytest.mark.parametrize("form", [None, "int8", "int4"])
def test_packed_weights_are_what_their_lines_hold(form):
    config = EngineConfig(dtype="bfloat16", weight_dtype=form, max_num_seqs=1, max_num_batched_tokens=8)
    model = build(CONFIG, dtype=jnp.bfloat16)
    engine = Engine(model if form is None else quantize_weights(model, form), None, config)
    found = weight_dtypes(engine.runner.model())
    assert (form or "bfloat16") in found
    assert found <= {form or "bfloat16", "bfloat16", "int8"}
