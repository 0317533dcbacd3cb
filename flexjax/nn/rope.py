"""Rotary position embedding, half-split as in the Hugging Face checkpoints."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

RopeTables = tuple[Array, Array] | None  # Cosines and sines; None turns nothing.


@dataclasses.dataclass(frozen=True)
class Rope:
    """Frequencies of a rotary embedding, and how they are stretched past the trained context.

    Scaling "linear" divides every frequency by `factor`; "llama3" divides the low ones (Llama 3.1);
    "yarn" blends by rotations within the trained context and scales cos and sin by `attention_factor`
    (Peng et al. 2023, arXiv:2309.00071).
    """

    theta: float = 10_000.0
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0
    original_max_position: int = 0  # Trained context in tokens; llama3 and yarn.
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn: rotations above which a frequency is kept.
    beta_slow: float = 1.0  # yarn: rotations below which it is divided.
    attention_factor: float = 1.0  # yarn
    truncate: bool = True  # yarn: whether the blend begins and ends at whole dimensions.

    def inverse_frequencies(self, head_dim: int) -> np.ndarray:
        """Radians a token of each pair of dimensions, float32 `[head_dim / 2]`."""
        inverse = 1.0 / self.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        if self.scaling == "linear":
            inverse = inverse / self.factor
        elif self.scaling == "llama3":
            rotations = self.original_max_position * inverse / (2 * math.pi)
            span = self.high_freq_factor - self.low_freq_factor
            keep = np.clip((rotations - self.low_freq_factor) / span, 0.0, 1.0)
            inverse = keep * inverse + (1.0 - keep) * inverse / self.factor
        elif self.scaling == "yarn":
            low, high = self._dimension_of(self.beta_fast, head_dim), self._dimension_of(self.beta_slow, head_dim)
            if self.truncate:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, head_dim - 1)
            ramp = (np.arange(head_dim // 2) - low) / max(high - low, 0.001)
            keep = 1.0 - np.clip(ramp, 0.0, 1.0)
            inverse = keep * inverse + (1.0 - keep) * inverse / self.factor
        return inverse.astype(np.float32)

    def _dimension_of(self, rotations: float, head_dim: int) -> float:
        """The pair index whose wave turns `rotations` times over the trained context."""
        waves = self.original_max_position / (rotations * 2 * math.pi)
        return head_dim * math.log(waves) / (2 * math.log(self.theta))

    def tables(
        self, positions: Int[Array, "*T"], head_dim: int
    ) -> tuple[Float[Array, "*T 1 half"], Float[Array, "*T 1 half"]]:
        """Cosines and sines at `positions`, float32, with an axis of one for the heads."""
        inverse = jnp.asarray(self.inverse_frequencies(head_dim))
        angles = jnp.einsum("...,H->...H", positions.astype(jnp.float32), inverse)[..., None, :]
        return jnp.cos(angles) * self.attention_factor, jnp.sin(angles) * self.attention_factor


def rotate(
    x: Float[Array, "*T N H"], tables: tuple[Float[Array, "*T 1 half"], Float[Array, "*T 1 half"]]
) -> Float[Array, "*T N H"]:
    """`x` with dimension i and i + H/2 of each head turned by their angle; float32 inside."""
    cos, sin = tables
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
