"""Matrix products, by dtype."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from flexjax.kernels.matmul import pack, packed_matmul, packs
from flexjax.lab.timing import Loop, Probe

PACKED = ("float32", "bfloat16", "int8")  # Dtypes of our own product on a CPU.


def matmuls(dtypes: Sequence[str], sizes: Sequence[int], rows: int | None = None) -> Iterator[Probe]:
    """Probes of 2 rows n² operations for each dtype and size: rows (n, unless given) times an `[n, n]` matrix, again
    and again, by XLA, and where a CPU's C++ is built by the packed product (`packed …`; int8 rounds its rows).

    Factors are random, since zeros draw less power and let a chip clock higher; the constant one keeps the length of
    rows, so that no value overflows or dies.
    """
    for dtype in dtypes:
        for n in sizes:
            x, w = _factors(rows or n, n, jnp.dtype(dtype))
            work = 2 * x.shape[0] * n**2
            yield Probe(f"{dtype} {n}", dtype, work, Loop(_product, jnp.copy(x), w))
            if dtype in PACKED and packs("float32"):
                yield Probe(f"packed {dtype} {n}", dtype, work, _packed(x, w))


def _product(x: Shaped[Array, "t n"], w: Shaped[Array, "n n"]) -> Shaped[Array, "t n"]:
    exact = jnp.issubdtype(x.dtype, jnp.integer)
    wide = jnp.einsum("ti,ij->tj", x, w, preferred_element_type=jnp.int32 if exact else jnp.float32)
    return (wide >> 8 if exact else wide).astype(x.dtype)


def _packed(x: Shaped[Array, "t n"], w: Shaped[Array, "n n"]) -> Loop:
    """The same rows in each call: on two cores a tenth of the peak is lost to rows that the other has just written."""
    options: dict[str, Any] = dict(out_dtype=x.dtype)
    scale = None
    if w.dtype == jnp.int8:
        x, options = x.astype(jnp.bfloat16), dict(out_dtype=jnp.bfloat16, activation_dtype="int8")
        scale = np.full(len(w), len(w) ** -0.5 / np.std(w), np.float32)
    return Loop(lambda _, x, weight: packed_matmul(x, weight, **options), jnp.zeros_like(x), x, pack(w, scale))


def _factors(rows: int, n: int, dtype: Any) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    if jnp.issubdtype(dtype, jnp.integer):
        x, w = (rng.integers(-127, 128, (length, n), np.int8) for length in (rows, n))
        return jnp.asarray(x), jnp.asarray(w)
    x, w = (rng.standard_normal((length, n), np.float32) for length in (rows, n))
    return jax.device_put(x).astype(dtype), jax.device_put(w * n**-0.5).astype(dtype)
