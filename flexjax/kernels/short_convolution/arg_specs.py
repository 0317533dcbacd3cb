"""Named shapes of the short convolution, the same for tests and benchmark."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flexjax.kernels.recurrent import Batch


@dataclasses.dataclass(frozen=True)
class ArgSpec:
    """One call: channels, width, and the rows of each sequence."""

    D: int
    batch: Batch
    W: int = 4
    dtype: str = "float32"
    bias: bool = True
    silu: bool = True

    @property
    def options(self) -> dict:
        """The keyword arguments of the call."""
        return dict(silu=self.silu, max_query_len=self.batch.max_query_len)

    @property
    def moved_bytes(self) -> int:
        """Each row read and written once, the state of each sequence written once, and read once where it goes on."""
        states = len(self.batch.rows) * 2 - sum(self.batch.fresh)
        return (2 * sum(self.batch.rows) + states * self.W) * self.D * jnp.dtype(self.dtype).itemsize

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * sum(self.batch.rows) * self.W * self.D

    def arguments(self, seed: int = 0) -> tuple[Array | None, ...]:
        """x, weight, bias, states, query_starts, state_slots, fresh; every slot is filled, those of nobody too."""
        rng = np.random.default_rng(seed)
        normal = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32), self.dtype)
        return (
            normal(self.batch.num_rows, self.D),
            normal(self.W, self.D),
            normal(self.D) if self.bias else None,
            normal(self.batch.num_slots, self.W, self.D),
            *self.batch.arguments(rng),
        )


DECODE, PREFILL = Batch((1,) * 16), Batch((512,))
MAMBA_130M = functools.partial(ArgSpec, D=1536)
MAMBA_2_8B = functools.partial(ArgSpec, D=5120)
MAMBA2_2_7B = functools.partial(ArgSpec, D=5120 + 2 * 128)  # B and C of one group are convolved too.

ARG_SPECS: dict[str, ArgSpec] = {
    "mamba_130m_decode": MAMBA_130M(batch=DECODE),
    "mamba_130m_prefill": MAMBA_130M(batch=Batch((150,))),
    "mamba_130m_mixed": MAMBA_130M(
        batch=Batch((1, 1, 37, 2, 3, 1, 70), padding_rows=13, padding_sequences=2), dtype="bfloat16"
    ),
    "mamba2_2_7b_decode": MAMBA2_2_7B(batch=Batch((1,) * 8, padding_rows=3, padding_sequences=3), dtype="bfloat16"),
    "mamba2_2_7b_prefill": MAMBA2_2_7B(batch=Batch((40, 24), goes_on=(True, True)), dtype="bfloat16"),
    "registers": ArgSpec(
        D=256,
        batch=Batch((1, 2, 3, 5, 116, 2, 6, 1), goes_on=(True, False) * 4, padding_rows=4),
        bias=False,
        silu=False,
    ),
    "short_rows": ArgSpec(D=24, batch=Batch((1, 2, 3, 4, 2, 1), goes_on=(True,) * 6), bias=False, silu=False),
    "one_fresh_row": ArgSpec(D=24, batch=Batch((1, 1), goes_on=(False, True), padding_rows=2)),
    "width_2": ArgSpec(D=20, W=2, batch=Batch((5, 1, 9), padding_sequences=1)),
}
# Sizes to be timed or compiled for, too large to be checked everywhere.
SERVING_SPECS: dict[str, ArgSpec] = {
    "mamba2_2_7b_decode_64": MAMBA2_2_7B(batch=Batch((1,) * 64), dtype="bfloat16"),
    "mamba2_2_7b_prefill_1024": MAMBA2_2_7B(batch=Batch((1024,)), dtype="bfloat16"),
}
