"""Rows of activations: how they are added, and where on a mesh they lie.

A leading `...` is `[T]` in a ragged step, which serves, and `[B, T]` in a rectangular batch, which trains.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flexjax.hardware.sharding import SERVING, TRAINING, constrain, constrain_factor


def add(x: Float[Array, "*T D"], y: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
    """The residual sum, rounded once."""
    return whole((x.astype(jnp.float32) + y).astype(x.dtype))


def whole(x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
    """A row is whole on its device. Left to itself, XLA would split it wherever a weight is split by `embed`, and
    gather it again in every layer.

    A ragged step's rows are all on every device of a mesh; a rectangular batch, which trains, is split by its
    sequences and their length."""
    if x.ndim == 2:
        return constrain(x, ("rows", "embed"), SERVING)
    return constrain(x, ("batch", "length", "embed"), TRAINING)


def looked_up(table: Float[Array, "V D"], tokens: Int[Array, "*T"]) -> Float[Array, "*T D"]:
    """The rows of `tokens`. In training each device looks up its columns for all examples of its data group, and these
    change places for whole rows of its own: the table, larger than they, stays where it is."""
    if tokens.ndim == 1:
        return table[tokens]
    tokens = constrain(tokens, ("group_batch", None), TRAINING)
    x = constrain(table[tokens], ("group_batch", None, "embed"), TRAINING)
    # Along one mesh axis at a time, which is how XLA lets parts change places: here sequence, later fsdp.
    return constrain(x, ("group_batch", "length", "embed"), TRAINING)


def beside(x: Float[Array, "*T D"], weight: Any, axis: int) -> Float[Array, "*T D"]:
    """A ragged step's rows before they are multiplied with `axis` of a weight: split where the weight is."""
    axes = weight.get_metadata("axes")[-weight.ndim :]  # In a loop over layers, of one layer's weight.
    return constrain_factor(x, weight, axes, axis, SERVING) if x.ndim == 2 else x
