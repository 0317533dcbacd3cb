"""The quantised matmul on a mesh: every device multiplies with its own part of the weight."""

import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Shaped

from flexjax.hardware.sharding import SERVING, spec
from flexjax.kernels import registry


def over_mesh(
    multiply: Callable[..., Array],
    axes: Sequence[str],
    x: Float[Array, "T D"],
    values: Shaped[Array, "*L D F"],
    scale: Float[Array, "..."] | None,
    layer: Int[Array, ""] | None,
) -> Float[Array, "T F"]:
    """`multiply` of these arguments, on each device of the mesh in use with the part of the weight that the rules give
    it by the logical `axes` of D and F: of columns there are parts, what is summed over parts of D is added.

    A weight whose groups would be cut is left whole, which no kernel serves.
    """
    if not registry.on_mesh():
        return multiply(x, values, scale, layer)
    mesh = jax.sharding.get_abstract_mesh()
    summed, columns, *_ = (*spec(axes, values.shape[-2:], mesh, SERVING), None, None)
    groups = scale.shape[-2] if scale is not None and scale.ndim == values.ndim else None
    if groups is not None and groups % _ways(summed, mesh):
        return multiply(x, values, scale, layer)

    def part(x: Array, values: Array, scale: Array | None, layer: Array | None) -> Array:
        y = multiply(x, values, scale, layer)
        return y if summed is None else jax.lax.psum(y, summed)

    stack = (None,) * (values.ndim - 2)
    scales = P(*stack, columns) if groups is None else P(*stack, summed, columns)
    in_specs = (P(None, summed), P(*stack, summed, columns), scales, P())
    return jax.shard_map(part, in_specs=in_specs, out_specs=P(None, columns), check_vma=False)(x, values, scale, layer)


def _ways(part: str | tuple[str, ...] | None, mesh: AbstractMesh) -> int:
    return math.prod(mesh.shape[name] for name in ((part,) if isinstance(part, str) else part or ()))
