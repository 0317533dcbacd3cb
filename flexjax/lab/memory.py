"""Reading and copying memory, by how much of it."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flexjax.kernels.matmul import packs, read_memory
from flexjax.lab.timing import Loop, Probe

BARE_BYTES = 500_000_000  # That a call of a bare read goes through, so that its own cost does not count.


def memory(mebibytes: Sequence[int]) -> Iterator[Probe]:
    """Probes of each size. `read`: a row times a square matrix, as decoding reads weights, and on a CPU whose C++ is
    built a loop that does nothing else (`bare_read`). `copy`: an array plus one, which reads and writes as many."""
    for size in mebibytes:
        n = int((size * 2**20 / 4) ** 0.5)
        matrix = np.random.default_rng(0).standard_normal((n, n), np.float32) * n**-0.5
        matrix = jax.device_put(matrix)
        yield Probe(f"read {size} MiB", "read", matrix.nbytes, Loop(_read, jnp.ones((1, n)), matrix))
        if packs("float32"):
            yield bare_read(size * 2**20, f"bare read {size} MiB")
        yield Probe(f"copy {size} MiB", "copy", 2 * matrix.nbytes, Loop(_copy, jnp.zeros((n, n))))


def bare_read(size_bytes: int, name: str) -> Probe:
    """Reads so many bytes with all of a CPU's threads and does nothing with them, over and over, as decoding reads its
    weights: what fits stays in the caches. NotImplementedError where the C++ is not built."""
    data = jax.device_put(np.ones(size_bytes, np.uint8))
    times = min(max(8, round(BARE_BYTES / size_bytes)), 512)

    def read(seen, data):
        return [read_memory(data) for _ in seen]

    seen = [jnp.zeros(1, jnp.uint32) for _ in range(times)]
    return Probe(name, "read", times * size_bytes, Loop(read, seen, data))


def _read(row: Float[Array, "1 n"], matrix: Float[Array, "n n"]) -> Float[Array, "1 n"]:
    return jnp.einsum("tn,nm->tm", row, matrix)


def _copy(x: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return x + 1.0
