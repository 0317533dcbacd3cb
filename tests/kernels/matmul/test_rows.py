import jax.numpy as jnp
import numpy as np

from flexjax.kernels.matmul.rows import rounded_rows


def test_the_largest_of_a_row_is_127_of_its_scale():
    x = jnp.asarray([[3.0, -1.5, 0.01], [0.0, 0.0, 0.0], [-8.0, 2.0, 4.0]], jnp.bfloat16)
    rounded, scale = rounded_rows(x)
    np.testing.assert_array_equal(rounded, [[127, -64, 0], [0, 0, 0], [-127, 32, 64]])
    np.testing.assert_allclose(scale[:, 0], np.array([3, 0, 8]) / 127, rtol=1e-6)
