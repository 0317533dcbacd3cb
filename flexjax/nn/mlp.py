"""The feed-forward layer."""

import functools
from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float

from flexjax.nn.declare import Maker

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class MLP(nnx.Module):
    """`down(act(gate(x)) * up(x))`, or without a gate `down(act(up(x)))`."""

    def __init__(self, make: Maker, *, activation: str, gated: bool = True, bias: bool = False):
        self.activation = activation
        self.gate = make.into("embed", "mlp", bias=bias) if gated else None
        self.up = make.into("embed", "mlp", bias=bias)
        self.down = make.back("mlp", "embed", bias=bias)

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
        act = ACTIVATIONS[self.activation]
        up = self.up(x)
        hidden = act(up) if self.gate is None else act(self.gate(x)) * up
        return self.down(hidden.astype(x.dtype))
