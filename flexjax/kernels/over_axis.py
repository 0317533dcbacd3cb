"""An op on a mesh: every device computes its own part of a dimension along which the op's results are independent.

No kernel can be split by XLA: without this, each would be given every device's part.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from flexjax.hardware.sharding import SERVING, constrain, spec
from flexjax.kernels import registry

Place = int | None  # The dimension of an array that is split; None is whole on every device.


def over_axis(
    call: Callable[..., Any],
    axis: str | None,
    size: int,
    arguments: Sequence[Any],
    places: Sequence[Place],
    results: Place | tuple[Place, ...],
) -> Any:
    """`call(*arguments)`, on each device of the mesh in use with its part of the dimension of `size` elements that has
    the logical axis `axis`: with the whole where the rules of `flexjax.hardware.sharding` do not split that.

    `places` tell where each argument has the dimension, `results` where each output has it.
    """
    if not registry.on_mesh():
        return call(*arguments)
    names = _mesh_axes(axis, size)
    at = lambda place: P() if place is None else P(*[None] * place, names)
    outputs = tuple(map(at, results)) if isinstance(results, tuple) else at(results)
    return jax.shard_map(call, in_specs=tuple(map(at, places)), out_specs=outputs, check_vma=False)(*arguments)


def sum_over_axis(
    call: Callable[..., jax.Array], axis: str | None, size: int, arguments: Sequence[Any], places: Sequence[Place]
) -> jax.Array:
    """The sum over devices of `call` of each device's part, as `over_axis` gives them."""
    names = _mesh_axes(axis, size)
    part = lambda *arguments: jax.lax.psum(call(*arguments), names) if names else call(*arguments)
    return over_axis(part, axis, size, arguments, places, None)


def parts(axis: str | None, size: int) -> int:
    """While tracing: the parts that a dimension of `size` elements is in, on the mesh in use."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in _mesh_axes(axis, size))


def copied(x: jax.Array, place: int, copies: int) -> jax.Array:
    """`x` with each element of a dimension as often in a row, so that more devices than those can have one each."""
    if copies == 1:
        return x
    # Whole before it is copied; else XLA would gather the weights to compute each copy where it goes.
    return jax.numpy.repeat(constrain(x, (None,) * x.ndim, SERVING), copies, axis=place)


def _mesh_axes(axis: str | None, size: int) -> tuple[str, ...]:
    """Those that split a dimension of `size` elements."""
    if not registry.on_mesh():
        return ()
    part = (*spec((axis,), (size,), jax.sharding.get_abstract_mesh(), SERVING), None)[0]
    return part if isinstance(part, tuple) else () if part is None else (part,)
