"""Named shapes of the selective scan, the same for tests and benchmark."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flexjax.kernels.recurrent import Batch


@dataclasses.dataclass(frozen=True)
class ArgSpec:
    """One call: channels, state size a channel, and the rows of each sequence."""

    D: int
    batch: Batch
    N: int = 16
    dtype: str = "float32"  # Of the rows; parameters are float32.
    state_dtype: str = "float32"
    gated: bool = True

    @property
    def options(self) -> dict:
        """The keyword arguments of the call."""
        return dict(max_query_len=self.batch.max_query_len)

    @property
    def moved_bytes(self) -> int:
        """Each row and parameter read once, each output written once, and the states."""
        rows = sum(self.batch.rows) * ((4 if self.gated else 3) * self.D + 2 * self.N) * jnp.dtype(self.dtype).itemsize
        states = (len(self.batch.rows) * 2 - sum(self.batch.fresh)) * self.N * self.D
        return rows + states * jnp.dtype(self.state_dtype).itemsize + (self.N + 2) * self.D * 4

    @property
    def operations(self) -> int:
        """Multiplications and additions: four and two an element of state that is computed, beside an exponential."""
        return 6 * sum(self.batch.rows) * self.N * self.D

    def arguments(self, seed: int = 0) -> tuple[Array | None, ...]:
        """x, dt, A, B, C, skip, dt_bias, z, states, query_starts, state_slots, fresh, of the size that a model begins
        with; every slot is filled, those of nobody too."""
        rng = np.random.default_rng(seed)
        normal = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32), self.dtype)
        T, D, N = self.batch.num_rows, self.D, self.N
        dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), D))  # The published initialisation.
        return (
            normal(T, D),
            normal(T, D),
            -jnp.asarray(rng.uniform(1, N, (N, D)), jnp.float32),
            normal(T, N),
            normal(T, N),
            jnp.asarray(rng.standard_normal(D), jnp.float32),
            jnp.asarray(dt + np.log(-np.expm1(-dt)), jnp.float32),
            normal(T, D) if self.gated else None,
            jnp.asarray(rng.standard_normal((self.batch.num_slots, N, D)), self.state_dtype),
            *self.batch.arguments(rng),
        )


MAMBA_130M = functools.partial(ArgSpec, D=1536)
MAMBA_2_8B = functools.partial(ArgSpec, D=5120)

ARG_SPECS: dict[str, ArgSpec] = {
    "mamba_130m_decode": MAMBA_130M(batch=Batch((1,) * 5, padding_rows=3, padding_sequences=3)),
    "mamba_130m_prefill": MAMBA_130M(batch=Batch((70,))),
    "mamba_130m_mixed": MAMBA_130M(
        batch=Batch((1, 1, 19, 2, 3, 1, 40), padding_rows=5, padding_sequences=2), dtype="bfloat16"
    ),
    "mamba_2_8b_mixed": MAMBA_2_8B(batch=Batch((1, 9, 1), goes_on=(True, True, False)), dtype="bfloat16"),
    "mamba_2_8b_narrow_states": MAMBA_2_8B(
        batch=Batch((1, 5, 1), goes_on=(True,) * 3, padding_sequences=1), dtype="bfloat16", state_dtype="bfloat16"
    ),
    "ungated": ArgSpec(D=256, N=8, batch=Batch((1, 20, 3)), gated=False),
    "odd_sizes": ArgSpec(D=24, N=5, batch=Batch((1, 2, 30), goes_on=(False, True, True), padding_rows=1)),
}
# Sizes to be timed or compiled for, too large to be checked everywhere.
SERVING_SPECS: dict[str, ArgSpec] = {
    "mamba_2_8b_decode_64": MAMBA_2_8B(batch=Batch((1,) * 64), dtype="bfloat16"),
    "mamba_2_8b_prefill_1024": MAMBA_2_8B(batch=Batch((1024,)), dtype="bfloat16"),
}
