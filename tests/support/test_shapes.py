"""The suite's own checker of shape types: the import hook is on, and wrong shapes fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int, TypeCheckError, jaxtyped
from shapes import check

from flexjax.kernels.ragged_paged_attention import base


@jaxtyped(typechecker=check)
def project(
    x: Float[Array, "T D"],
    w: Float[Array, "D F"],
    starts: Int[Array, "B+1"] | None = None,
    lengths: Int[Array, "B"] | None = None,
) -> tuple[Float[Array, "T F"], int]:
    return (jnp.einsum("TD,DF->TF", x, w) if w.shape[1] < 9 else x), 0


ok = dict(x=jnp.ones((2, 3)), w=jnp.ones((3, 4)))


def test_right_shapes_pass():
    project(**ok)
    project(np.ones((2, 3), np.float32), ok["w"])
    project(**ok, lengths=np.arange(3, dtype=np.int32))
    project(**ok, starts=jnp.arange(4), lengths=jnp.arange(3))
    jax.jit(project)(**ok)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(x=jnp.ones((2, 3, 1))),
        dict(x=jnp.ones((2, 3), jnp.int32)),
        dict(w=jnp.ones((4, 4))),
        dict(starts=jnp.arange(3), lengths=jnp.arange(3)),
        dict(lengths=jnp.ones((3, 1), jnp.int32)),
        dict(w=jnp.ones((3, 9))),
    ],
    ids=["rank", "dtype", "size", "computed size", "optional", "result"],
)
def test_wrong_shapes_fail(wrong):
    with pytest.raises(TypeCheckError):
        project(**ok | wrong)


def test_the_product_is_under_it():
    with pytest.raises(TypeCheckError, match="ragged_paged_attention"):
        base.ragged_paged_attention(*[jnp.ones(2)] * 7, scale=1.0, max_query_len=1)
