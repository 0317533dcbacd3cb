"""Named shapes of SSD, the same for tests and benchmark."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flexjax.kernels.recurrent import Batch


@dataclasses.dataclass(frozen=True)
class ArgSpec:
    """One call: heads, channels a head, groups of heads that share B and C, state size, and the rows."""

    H: int
    batch: Batch
    P: int = 64
    G: int = 1
    N: int = 128
    dtype: str = "float32"  # Of x, B and C; the rest is float32.
    state_dtype: str = "float32"

    @property
    def D(self) -> int:
        return self.H * self.P

    @property
    def options(self) -> dict:
        """The keyword arguments of the call."""
        return dict(max_query_len=self.batch.max_query_len)

    @property
    def moved_bytes(self) -> int:
        """Each row read once, each output written once, and the states."""
        rows = sum(self.batch.rows) * (2 * self.D + 2 * self.G * self.N) * jnp.dtype(self.dtype).itemsize
        states = (len(self.batch.rows) * 2 - sum(self.batch.fresh)) * self.N * self.D
        return rows + sum(self.batch.rows) * self.H * 4 + states * jnp.dtype(self.state_dtype).itemsize

    @property
    def operations(self) -> int:
        """Multiplications and additions of the recurrence: one each to update an element of state, and to read it."""
        return 4 * sum(self.batch.rows) * self.N * self.D

    def arguments(self, seed: int = 0) -> tuple[Array, ...]:
        """x, dt, A, B, C, skip, states, query_starts, state_slots, fresh, of the size that a model begins with; every
        slot is filled, those of nobody too."""
        rng = np.random.default_rng(seed)
        normal = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32), self.dtype)
        T, H = self.batch.num_rows, self.H
        return (
            normal(T, self.D),
            jnp.asarray(np.exp(rng.uniform(np.log(1e-3), np.log(0.3), (T, H))), jnp.float32),
            -jnp.asarray(rng.uniform(1, 16, H), jnp.float32),  # The published initialisation.
            normal(T, self.G, self.N),
            normal(T, self.G, self.N),
            jnp.asarray(rng.standard_normal(H), jnp.float32),
            jnp.asarray(rng.standard_normal((self.batch.num_slots, self.N, self.D)), self.state_dtype),
            *self.batch.arguments(rng),
        )


MAMBA2_130M = functools.partial(ArgSpec, H=24)
MAMBA2_2_7B = functools.partial(ArgSpec, H=80)
CODESTRAL_7B = functools.partial(ArgSpec, H=128, G=8)

ARG_SPECS: dict[str, ArgSpec] = {
    "mamba2_130m_decode": MAMBA2_130M(batch=Batch((1,) * 5, padding_rows=3, padding_sequences=3)),
    "mamba2_130m_prefill": MAMBA2_130M(batch=Batch((140,))),
    "mamba2_130m_mixed": MAMBA2_130M(
        batch=Batch((1, 1, 37, 2, 1, 90), padding_rows=5, padding_sequences=2), dtype="bfloat16"
    ),
    "mamba2_2_7b_mixed": MAMBA2_2_7B(batch=Batch((1, 9, 1), goes_on=(True, True, False)), dtype="bfloat16"),
    "codestral_7b_mixed": CODESTRAL_7B(batch=Batch((1, 5), goes_on=(True, True)), dtype="bfloat16"),
    "narrow_states": MAMBA2_130M(
        batch=Batch((1, 5, 1), goes_on=(True,) * 3, padding_sequences=1), dtype="bfloat16", state_dtype="bfloat16"
    ),
    "small": ArgSpec(H=4, N=64, batch=Batch((1, 70, 1, 75, 1), padding_rows=2)),
    "groups": ArgSpec(H=8, P=32, G=2, batch=Batch((40, 1, 3)), dtype="bfloat16"),
    "odd_sizes": ArgSpec(H=3, P=5, G=3, N=6, batch=Batch((1, 2, 30), goes_on=(False, True, True), padding_rows=1)),
}
# Sizes to be timed or compiled for, too large to be checked everywhere.
SERVING_SPECS: dict[str, ArgSpec] = {
    "mamba2_2_7b_decode_64": MAMBA2_2_7B(batch=Batch((1,) * 64), dtype="bfloat16"),
    "mamba2_2_7b_prefill_1024": MAMBA2_2_7B(batch=Batch((1024,)), dtype="bfloat16"),
    "mamba2_130m_prefill_1024": MAMBA2_130M(batch=Batch((1024,)), dtype="bfloat16"),
    "codestral_7b_prefill_1024": CODESTRAL_7B(batch=Batch((1024,)), dtype="bfloat16"),
}
