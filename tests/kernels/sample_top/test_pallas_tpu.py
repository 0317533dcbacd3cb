"""What the TPU's own compiler makes of the body, and what the body refuses; its values: test_base.py."""

import jax
import jax.numpy as jnp
import pytest
from described import compiled

from flexjax.hardware import program
from flexjax.kernels.sample_top import pallas_tpu


def abstract(B: int, V: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    rule = lambda dtype: jax.ShapeDtypeStruct((B,), dtype)
    return jax.ShapeDtypeStruct((B, V), jnp.float32), rule(jnp.int32), rule(jnp.float32), rule(jnp.float32)


@pytest.mark.tpu
@pytest.mark.parametrize(("chip", "V"), [("v5e", 128_256), ("v6e", 50_257)])
def test_reads_the_logits_once(chip: str, V: int):
    text = compiled(chip, pallas_tpu.sample_top, *abstract(16, V)).as_text()
    assert text is not None
    assert program.read(text).hbm_bytes <= 1.01 * 16 * V * 4


def test_a_vocabulary_past_the_on_chip_memory_is_refused():
    with pytest.raises(NotImplementedError, match="8 rows of 600000 logits do not fit"):
        jax.eval_shape(pallas_tpu.sample_top, *abstract(8, 600_000))
