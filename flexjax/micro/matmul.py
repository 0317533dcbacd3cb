"""Square matrix products, by dtype."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from flexjax.micro.timing import Loop, Probe


def matmuls(dtypes: Sequence[str], sizes: Sequence[int]) -> Iterator[Probe]:
    """A probe of 2 n³ operations for each dtype and size: an `[n, n]` matrix times another, again and again.

    Factors are random, since zeros draw less power and let a chip clock higher; the constant one keeps the length of
    rows, so that no value overflows or dies.
    """
    for dtype in dtypes:
        for n in sizes:
            x, w = _factors(n, jnp.dtype(dtype))
            yield Probe(f"{dtype} {n}", dtype, 2 * n**3, Loop(_product, x, w))


def _product(x: Shaped[Array, "n n"], w: Shaped[Array, "n n"]) -> Shaped[Array, "n n"]:
    exact = jnp.issubdtype(x.dtype, jnp.integer)
    wide = jnp.einsum("ij,jk->ik", x, w, preferred_element_type=jnp.int32 if exact else jnp.float32)
    return (wide >> 8 if exact else wide).astype(x.dtype)


def _factors(n: int, dtype: Any) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    if jnp.issubdtype(dtype, jnp.integer):
        x, w = (rng.integers(-127, 128, (n, n), np.int8) for _ in range(2))
        return jnp.asarray(x), jnp.asarray(w)
    x, w = (rng.standard_normal((n, n), np.float32) for _ in range(2))
    return jax.device_put(x).astype(dtype), jax.device_put(w * n**-0.5).astype(dtype)
