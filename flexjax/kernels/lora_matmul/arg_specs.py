"""Named shapes of the gathered LoRA matmul, the same for tests and benchmark."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flexjax.kernels.lora_matmul.rows import AdapterRows

NONE = -1  # The adapter of a row that has none.


@dataclasses.dataclass(frozen=True)
class ArgSpec:
    """One call: the rows of a batch by (adapter, how many of its rows follow each other)."""

    D: int
    F: int
    R: int  # Rank.
    A: int  # Adapters.
    rows: tuple[tuple[int, int], ...]
    dtype: str = "bfloat16"

    @property
    def T(self) -> int:
        return sum(count for _, count in self.rows)

    @property
    def adapters_used(self) -> int:
        return len({adapter for adapter, _ in self.rows if adapter >= 0})

    @property
    def read_bytes(self) -> int:
        """Of the adapters that the batch uses, each once."""
        return self.adapters_used * self.R * (self.D + self.F) * jnp.dtype(self.dtype).itemsize

    @property
    def operations(self) -> int:
        """Multiplications and additions, of rows with an adapter alone."""
        return 2 * sum(count for adapter, count in self.rows if adapter >= 0) * self.R * (self.D + self.F)

    def arguments(self, seed: int = 0) -> tuple[Any, ...]:
        """y, x, a, b, rows: random, with a change about as large as y."""
        rng = np.random.default_rng(seed)

        def normal(*shape: int, dtype: str, size: float = 1.0) -> jax.Array:
            return jnp.asarray(size * rng.standard_normal(shape, np.float32), dtype)

        adapter = np.repeat([adapter for adapter, _ in self.rows], [count for _, count in self.rows])
        return (
            normal(self.T, self.F, dtype="float32"),
            normal(self.T, self.D, dtype=self.dtype),
            normal(self.A, self.R, self.D, dtype=self.dtype, size=self.D**-0.5),
            normal(self.A, self.R, self.F, dtype=self.dtype, size=self.R**-0.5),
            AdapterRows.of(jnp.asarray(adapter, jnp.int32), self.A),
        )


def decode(batch: int, adapters: int) -> tuple[tuple[int, int], ...]:
    """`batch` rows of as many sequences, whose adapters lie mixed; every fifth row has none."""
    return tuple((NONE if t % 5 == 4 else 7 * t % adapters, 1) for t in range(batch))


SHIPPED = functools.partial(ArgSpec, D=256, F=704, R=16)  # The model that the project ships.
LLAMA3_8B = functools.partial(ArgSpec, D=4096, F=4096, R=16)

ARG_SPECS: dict[str, ArgSpec] = {
    "shipped_decode_1": SHIPPED(A=4, rows=((2, 1),)),
    "shipped_decode_16": SHIPPED(A=20, rows=decode(16, 20)),
    "shipped_float32": SHIPPED(A=3, rows=decode(9, 3), dtype="float32"),
    "mixed": SHIPPED(A=5, rows=((1, 1), (NONE, 3), (4, 37), (0, 1), (4, 5), (NONE, 18))),
    "no_adapter_in_use": SHIPPED(A=2, rows=((NONE, 6),)),
    "rank_64": ArgSpec(D=512, F=256, R=64, A=5, rows=decode(8, 5)),
    "rank_8_odd_sizes": ArgSpec(D=75, F=37, R=8, A=3, rows=((0, 2), (2, 3)), dtype="float32"),
}
# Sizes to be timed or compiled for, too large to be checked everywhere.
SERVING_SPECS: dict[str, ArgSpec] = {
    "llama3_8b_decode_8": LLAMA3_8B(A=8, rows=decode(8, 8)),
    "llama3_8b_decode_64": LLAMA3_8B(A=64, rows=decode(64, 64)),
    "llama3_8b_mlp_decode_16": LLAMA3_8B(F=14336, A=16, rows=decode(16, 16)),
    "llama3_8b_prefill": LLAMA3_8B(A=8, rows=((3, 400), (0, 100), (NONE, 12))),
}
