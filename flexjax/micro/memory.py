"""Reading and copying memory, by how much of it."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flexjax.micro.timing import Loop, Probe


def memory(mebibytes: Sequence[int]) -> Iterator[Probe]:
    """Probes of each size: `read`, a row times a square matrix as decoding reads weights, and `copy`, an array plus
    one, which reads and writes as many bytes."""
    for size in mebibytes:
        n = int((size * 2**20 / 4) ** 0.5)
        matrix = np.random.default_rng(0).standard_normal((n, n), np.float32) * n**-0.5
        matrix = jax.device_put(matrix)
        yield Probe(f"read {size} MiB", "read", matrix.nbytes, Loop(_read, jnp.ones((1, n)), matrix))
        yield Probe(f"copy {size} MiB", "copy", 2 * matrix.nbytes, Loop(_copy, jnp.zeros((n, n))))


def _read(row: Float[Array, "1 n"], matrix: Float[Array, "n n"]) -> Float[Array, "1 n"]:
    return jnp.einsum("tn,nm->tm", row, matrix)


def _copy(x: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return x + 1.0
