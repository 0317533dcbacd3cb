import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.kernels.lora_matmul import AdapterRows


@pytest.mark.parametrize(
    "adapters", [[3, -1, 0, 3, 5, -1, 3, 0, 1], [-1] * 9, [5] * 9, [0, 1, 2, 3, 4, 5, 0, 1, 2], [-1] * 8 + [2]]
)
def test_every_adapter_in_use_stands_once(adapters: list[int]):
    rows = jax.jit(AdapterRows.of, static_argnums=1)(jnp.asarray(adapters, jnp.int32), 6)
    used, count = np.asarray(rows.used), int(rows.count[0])
    distinct = sorted(set(adapters) - {-1})
    assert used[:count].tolist() == distinct
    assert len(used) == 6
    assert set(used[count:]) <= {distinct[-1] if distinct else 0}
    assert np.asarray(rows.adapter).tolist() == adapters


@pytest.mark.parametrize("layer", [0, 3])
def test_in_a_layer_the_same_rows_have_that_layers_adapters(layer: int):
    adapters = jnp.asarray([4, -1, 0, 4], jnp.int32)
    rows = AdapterRows.of(adapters, 5).in_layer(layer, 5)
    np.testing.assert_array_equal(rows.adapter, np.where(adapters < 0, -1, adapters + 5 * layer))
