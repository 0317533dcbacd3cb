import jax.numpy as jnp
import numpy as np
import pytest

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
