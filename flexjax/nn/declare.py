"""Parameters declared: one call gives shape, dtype, logical axes (`parameter.axes`) and first value."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from jax.nn.initializers import Initializer, normal, variance_scaling, zeros

from flexjax.nn.embedding import Embedding
from flexjax.nn.linear import Linear


class Maker:
    """Makes the parameters of a model whose logical axes have these sizes."""

    def __init__(self, sizes: Mapping[str, int], num_layers: int, dtype: Any, rngs: nnx.Rngs):
        self.sizes, self.dtype, self.rngs = sizes, dtype, rngs
        # GPT-2's rule: the residual stream keeps its scale however many layers add to it.
        self.residual_scale = 0.5 / num_layers

    def __call__(self, *axes: str, init: Initializer, **metadata: Any) -> nnx.Param:
        shape = tuple(self.sizes[axis] for axis in axes)
        return nnx.Param(init(self.rngs.params(), shape, self.dtype), axes=axes, **metadata)

    def into(self, *axes: str, bias: bool = False) -> Linear:
        """A projection from the model width."""
        init = variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=tuple(range(1, len(axes))))
        return Linear(self(*axes, init=init, summed=1), self.bias(bias, *axes[1:]))

    def back(self, *axes: str, bias: bool = False) -> Linear:
        """A projection to the model width, whose result is added to the residual stream."""
        inputs = tuple(range(len(axes) - 1))
        init = variance_scaling(self.residual_scale, "fan_in", "normal", in_axis=inputs, out_axis=-1)
        return Linear(self(*axes, init=init, summed=len(inputs)), self.bias(bias, axes[-1]))

    def bias(self, wanted: bool, *axes: str) -> nnx.Param | None:
        return self(*axes, init=zeros, bias=True) if wanted else None

    def embedding(self, axis: str, *, tied: bool = False) -> Embedding:
        """A table of vectors of the model width; `tied` says that the last product is made with it too."""
        return Embedding(self(axis, "embed", init=normal(0.02), tied=tied))
