"""Named shapes of top-k, top-p and min-p, the same for tests and benchmark."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

OFF = (0, 1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class ArgSpec:
    """One call: the (top_k, top_p, min_p) of each row, over a vocabulary."""

    rows: tuple[tuple[int, float, float], ...]
    V: int
    spread: float = 3.0  # Of the logits; the larger, the fewer tokens share the probability.
    levels: int | None = None  # Distinct logits, so that many are equal.
    dtype: str = "float32"

    @property
    def read_bytes(self) -> int:
        return len(self.rows) * self.V * 4

    def arguments(self, seed: int = 0) -> tuple[jax.Array, ...]:
        """logits, top_k, top_p, min_p: every seventh logit of a row is -inf."""
        rng = np.random.default_rng(seed)
        logits = self.spread * rng.standard_normal((len(self.rows), self.V), np.float32)
        if self.levels is not None:
            logits = np.round(logits * self.levels / self.spread) / np.float32(self.levels)
        logits[:, 3::7] = -np.inf
        k, p, floor = zip(*self.rows, strict=True)
        return (
            jnp.asarray(logits),
            jnp.asarray(k, jnp.int32),
            jnp.asarray(p, jnp.float32),
            jnp.asarray(floor, jnp.float32),
        )


EACH = (
    (5, 1.0, 0.0),
    (0, 0.9, 0.0),
    (0, 1.0, 0.1),
    (40, 0.8, 0.0),
    (40, 0.95, 0.2),
    OFF,
    (1, 1.0, 0.0),
    (0, 1e-4, 0.0),
)

ARG_SPECS: dict[str, ArgSpec] = {
    "one_row": ArgSpec(((50, 0.9, 0.05),), 256),
    "each_rule": ArgSpec(EACH, 4096),
    "more_rows_than_a_tile": ArgSpec((*EACH, (3, 0.5, 0.0), (7, 1.0, 0.0)), 1024, spread=1.0),
    "equal_logits": ArgSpec(EACH, 512, levels=3),
    "odd_vocabulary": ArgSpec(EACH[:5], 1001),
    "more_than_there_are": ArgSpec(((5000, 1.0, 0.0), (5000, 0.5, 0.0)), 300),
}
SERVING_SPECS: dict[str, ArgSpec] = {f"llama3_{B}": ArgSpec(((50, 0.9, 0.0),) * B, 128_256) for B in (8, 64)}
