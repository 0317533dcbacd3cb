"""Run by test_collectives.py in a process with four devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from flexjax.lab import collectives
from flexjax.lab.collectives import AXIS, COLLECTIVES

N = 8

RESULTS = {
    "all-reduce": lambda x: np.tile(x.mean(0), (4, 1)),
    "all-gather": lambda x: np.roll(x, -1, 0),
    "reduce-scatter": lambda x: np.stack([np.tile(part, 4) for part in x.mean(0).reshape(4, -1)]),
    "all-to-all": lambda x: x.reshape(4, 4, -1).swapaxes(0, 1).reshape(4, -1),
    "collective-permute": lambda x: np.roll(x, 1, 0),
}


@pytest.mark.parametrize("name", COLLECTIVES)
def test_it_is_the_collective_that_it_is_called(name):
    mesh = Mesh(jax.devices(), (AXIS,), axis_types=(AxisType.Auto,))
    spec = PartitionSpec(AXIS)
    run = jax.jit(jax.shard_map(lambda x: COLLECTIVES[name](x, 4), mesh=mesh, in_specs=spec, out_specs=spec))
    x = np.random.default_rng(0).standard_normal((4, N)).astype(np.float32)
    compiled = run.lower(jnp.asarray(x.reshape(-1))).compile()
    np.testing.assert_allclose(compiled(x.reshape(-1)).reshape(4, N), RESULTS[name](x), rtol=1e-6)
    assert f" {name}(" in compiled.as_text()
    assert not any(f" {other}(" in compiled.as_text() for other in COLLECTIVES if other != name)


def test_work_is_what_a_device_sends():
    sent = {p.kind: p.work for p in collectives([4])}
    assert sent == {
        "all-reduce": 2 * 3 / 4 * 4096,
        "all-gather": 3 * 4096,
        "reduce-scatter": 3 / 4 * 4096,
        "all-to-all": 3 / 4 * 4096,
        "collective-permute": 4096,
    }
