"""Whether every number of a state is one."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

_LISTED = 3


@jax.jit  # An array at a time: one program for each shape, where one of all takes long to compile.
def _finite(array: Array) -> Bool[Array, ""]:
    return jnp.isfinite(array).all()


def not_finite(state: Any) -> str:
    """The arrays of `state` that hold a NaN or an infinity, by name: "params/embedding and 3 more"; empty for none.

    Runs on the devices that hold the state, in every process that does; a flag an array is brought to the host, once.
    """
    leaves, _ = jax.tree.flatten_with_path(state)
    floats = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    flags = jax.device_get([_finite(array) for array in floats.values()])
    names = [name for name, flag in zip(floats, flags, strict=True) if not flag]
    more = f" and {len(names) - _LISTED} more of {len(floats)}" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
