"""RMSNorm and LayerNorm."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import ones, zeros
from jaxtyping import Array, Float

from flexjax.nn.declare import Maker

Kind = Literal["rms", "layer"]


class Norm(nnx.Module):
    """RMSNorm, or LayerNorm with a bias, over the last axis; float32 inside.

    `offset` is added to the stored scale: Gemma stores scale - 1.
    """

    def __init__(self, make: Maker, axis: str, kind: Kind = "rms", *, eps: float, offset: float = 0.0):
        self.eps, self.offset, self.kind = eps, offset, kind
        self.scale = make(axis, init=zeros if offset else ones)
        self.bias = make.bias(kind == "layer", axis)

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.eps)
        # Not an einsum: as a dot, XLA's CPU backend merges it with the products that follow and widens their
        # bfloat16 weights to float32, a copy of each in every step.
        y = y * jnp.broadcast_to(self.scale[...].astype(jnp.float32) + self.offset, y.shape)
        if self.bias is not None:
            y = y + jnp.broadcast_to(self.bias[...].astype(jnp.float32), y.shape)
        return y.astype(x.dtype)
