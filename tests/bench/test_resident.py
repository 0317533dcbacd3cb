import jax.numpy as jnp
import pytest

from flexjax.bench.resident import resident
from flexjax.bench.stock import StockConfig
from flexjax.engine import EngineConfig
from models import transformer
from models.transformer import Layer, Rope, TransformerConfig

CONFIG = TransformerConfig(
    "LlamaForCausalLM", vocab_size=96, d_model=64, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=96,
    max_position=64, layers=(Layer(rope=Rope()),),
)  # fmt: skip
SMALL = EngineConfig(max_num_seqs=1, max_num_batched_tokens=32, page_size=16, weight_dtype="int8")


def test_a_process_of_its_own_tells_what_it_holds(tmp_path):
    model = transformer.build(CONFIG, dtype=jnp.bfloat16)
    transformer.save(model, tmp_path)
    found = resident(tmp_path, SMALL, prompt=5, output=3)
    assert 0 < found.weights < 10**6 and 0 < found.cache < 10**6
    # Python, JAX and XLA, little of whose code is in memory while it serves.
    assert 50e6 < found.resident < 350e6 + found.weights + found.cache
    assert found.resident <= found.serving_peak <= found.peak
    with pytest.raises(RuntimeError, match="There is no model at .*missing"):
        resident(tmp_path / "missing", SMALL, prompt=5, output=3)


def test_stock_is_measured_likewise(tmp_path):
    transformer.save(transformer.build(CONFIG, dtype=jnp.float32), tmp_path)
    stock = StockConfig(batch_size=4, max_prompt_tokens=8, max_output_tokens=8)
    found = resident(tmp_path, stock, prompt=5, output=3, requests=4)
    assert 0 < found.weights < 10**6 and 0 < found.cache < 10**6
    assert 50e6 < found.resident <= found.serving_peak <= found.peak
