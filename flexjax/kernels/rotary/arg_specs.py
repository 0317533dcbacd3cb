"""Named shapes of the rotary cut, the same for tests and benchmark."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class ArgSpec:
    """One call: rows, heads of queries, of keys and values, and what a head has."""

    T: int
    N: int
    K: int
    H: int
    dtype: str = "bfloat16"

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the call."""
        return dict(num_heads=self.N, num_kv_heads=self.K, dtype=jnp.dtype(self.dtype))

    @property
    def moved_bytes(self) -> int:
        """The product read, and its parts written, once; cosines and sines read."""
        return self.T * ((self.N + 2 * self.K) * self.H * (4 + jnp.dtype(self.dtype).itemsize) + self.H * 4)

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 3 * self.T * (self.N + self.K) * self.H

    def arguments(self, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x, cos, sin."""
        rng = np.random.default_rng(seed)
        angles = np.arange(self.T, dtype=np.float32)[:, None] * 10_000.0 ** -np.linspace(0, 1, self.H // 2)
        x = rng.standard_normal((self.T, (self.N + 2 * self.K) * self.H), np.float32)
        return jnp.asarray(x), jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


ARG_SPECS: dict[str, ArgSpec] = {
    "shipped_prefill_128": ArgSpec(T=128, N=4, K=4, H=64),
    "grouped_float32": ArgSpec(T=37, N=6, K=2, H=64, dtype="float32"),
    "one_row": ArgSpec(T=1, N=12, K=4, H=64),
    "odd_half": ArgSpec(T=5, N=3, K=1, H=10),
    "wide_head": ArgSpec(T=19, N=2, K=1, H=256),
}
# Sizes to be timed, too large to be checked everywhere.
SERVING_SPECS: dict[str, ArgSpec] = {
    "m_decode_16": ArgSpec(T=16, N=12, K=4, H=64),
    "m_prefill_1024": ArgSpec(T=1024, N=12, K=4, H=64),
    "llama3_8b_prefill_1024": ArgSpec(T=1024, N=32, K=8, H=128),
}
