import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from flexjax.kernels import recurrent
from flexjax.kernels.recurrent import Batch


def test_rows_know_their_sequence():
    batch = Batch((2, 1, 3), goes_on=(False, True, True), padding_rows=2, padding_sequences=2)
    starts, slots, fresh = batch.arguments(np.random.default_rng(0))
    rows = recurrent.rows_of(batch.num_rows, 5, starts, slots, fresh)
    np.testing.assert_array_equal(rows.live, [True] * 6 + [False] * 2)
    np.testing.assert_array_equal(rows.sequence[:6], [0, 0, 1, 2, 2, 2])
    np.testing.assert_array_equal(rows.offset[:6], [0, 1, 0, 0, 1, 2])
    np.testing.assert_array_equal(rows.starts_at_zero[:6], [True, True] + [False] * 4)
    np.testing.assert_array_equal(rows.slot, [*np.asarray(slots)[[0, 0, 1, 2, 2, 2]], 5, 5])


def test_shapes_that_do_not_fit_are_named():
    batch = (jnp.zeros((5, 2, 8)), jnp.zeros(4, jnp.int32), jnp.zeros(3, jnp.int32), jnp.zeros(3, jnp.bool))
    recurrent.check_batch(*batch, max_query_len=1, state=(2, 8))
    with pytest.raises(ValueError, match=r"states must have shape \(5, 3, 8\) .* it has \(5, 2, 8\)"):
        recurrent.check_batch(*batch, max_query_len=1, state=(3, 8))


def test_a_kernel_is_refused_on_a_mesh_but_inside_shard_map():
    mesh = AbstractMesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def inside(x):
        recurrent.refuse_mesh()
        return x

    with jax.sharding.use_abstract_mesh(mesh):
        with pytest.raises(NotImplementedError, match="a mesh of 2 devices is in use"):
            recurrent.refuse_mesh()
        spec = PartitionSpec("x")
        jax.eval_shape(jax.shard_map(inside, in_specs=spec, out_specs=spec), jax.ShapeDtypeStruct((2,), jnp.float32))
    recurrent.refuse_mesh()
