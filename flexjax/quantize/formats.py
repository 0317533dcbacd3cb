"""Matrices in fewer bits, as data: integers, their scales and zero points."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Shaped

from flexjax.refusal import Refusal


@dataclasses.dataclass(frozen=True)
class Format:
    """Integers of `bits`; `group` summed elements share a scale, all of an output channel where it is None."""

    dtype: Any
    bits: int
    group: int | None

    @property
    def largest(self) -> int:
        return 2 ** (self.bits - 1) - 1  # The range is symmetric: the lowest integer is not used.


FORMATS = {"int8": Format(jnp.int8, 8, None), "int4": Format(jnp.int4, 4, 32)}


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A matrix `[D, F]` that is about `scale * (values - zero)`, wherever it was made.

    Invariants: `scale` is float32, `[F]`, or `[G, F]` where each of G equal groups of D has its own; `zero` has its
    shape, or is None for zeros.
    """

    values: Shaped[Array, "D F"]
    scale: Float[Array, "..."]
    zero: Float[Array, "..."] | None = None

    def __post_init__(self):
        D, F = self.values.shape
        *groups, columns = self.scale.shape
        if columns != F or len(groups) > 1 or D % (groups or [1])[0]:
            raise Refusal(
                f"A matrix [{D}, {F}] has a scale [{F}], or [G, {F}] with G groups that divide {D} evenly; got "
                f"{list(self.scale.shape)}."
            )
        if self.zero is not None and self.zero.shape != self.scale.shape:
            raise Refusal(f"zero has the shape of scale, {list(self.scale.shape)}; got {list(self.zero.shape)}.")

    @property
    def grouped(self) -> bool:
        return self.scale.ndim == 2


def rounded(matrix: Float[Array, "D F"], name: str) -> Quantized:
    """The matrix rounded to nearest in the format of that name: within half a scale everywhere.

    Refusal for an unknown format, or a D that does not divide into its groups.
    """
    form = format_named(name)
    D, F = matrix.shape
    group = D if form.group is None else form.group
    if D % group:
        raise Refusal(
            f"{name} weights share a scale in groups of {group}; the {D} summed elements of a weight [{D}, {F}] do not "
            "divide. Choose int8, which has one scale a channel."
        )
    values, scale = _rounded(matrix.reshape(D // group, group, F), form)
    return Quantized(values.reshape(D, F), scale[0] if form.group is None else scale)


def format_named(name: str) -> Format:
    if name not in FORMATS:
        raise Refusal(f"Weights can be rounded to {' or '.join(FORMATS)}; got {name!r}.")
    return FORMATS[name]


@functools.partial(jax.jit, static_argnums=1)  # In one pass over the weight, with nothing beside it.
def _rounded(groups: Float[Array, "G I O"], form: Format) -> tuple[Array, Float[Array, "G O"]]:
    """Integers, and the scale that puts the largest of each group at the end of their range."""
    groups = groups.astype(jnp.float32)
    scale = jnp.max(jnp.abs(groups), axis=1, keepdims=True) / form.largest
    scale = jnp.where(scale > 0, scale, 1.0)
    return jnp.round(groups / scale).astype(form.dtype), scale[:, 0]


@jax.jit  # In one pass over the table, with nothing beside it.
def rounded_table(table: Float[Array, "V D"]) -> tuple[Int8[Array, "V D"], Float[Array, "V"]]:
    """A table of vectors in int8, and the scale of each vector."""
    wide = table.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=1) / 127
    scale = jnp.where(scale > 0, scale, 1.0)
    return jnp.round(wide / jnp.broadcast_to(scale[:, None], wide.shape)).astype(jnp.int8), scale
