"""Weights in the form that the CPU's kernel streams: panels of 32 outputs, in lines of 64 bytes (cpu_product.h)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Shaped

PANEL = 32  # outputs
TILE = 16  # outputs; gates stand beside the values that they multiply in tiles
GROUP = 32  # summed elements that share a scale of int4
PER_LINE = {"float32": 1, "bfloat16": 2, "int8": 4, "int4": 8}  # Elements of one output in a line.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """An [D, F] weight. `lines` is [panels, chunks, 2, lines, 16, n]: n elements that follow each other along D for
    each of 16 outputs are a line. int4 come four in 16 bits: of the eight elements of a line, the even ones in
    the first and the odd ones in the second.

    Invariants: `scale` is [panels, 32] for int8, [panels, chunks, 32] for int4, else None; `bias` [panels, 32] or
    None: an empty array would cost each dispatch of a step as much as another. What pads D and F is zero. A gated
    weight has F = 2 × outputs: each panel 16 gates and the 16 values that they multiply.
    """

    lines: Shaped[Array, "panels chunks two lines tile n"]
    scale: Float[Array, "..."] | None
    bias: Float[Array, "..."] | None
    D: int = dataclasses.field(metadata=dict(static=True))
    F: int = dataclasses.field(metadata=dict(static=True))
    gated: bool = dataclasses.field(default=False, metadata=dict(static=True))

    @property
    def dtype(self) -> jnp.dtype:
        """Of the weight's elements."""
        return jnp.dtype(jnp.int4) if self.lines.dtype == jnp.uint16 else self.lines.dtype


def pack(values: Any, scale: Any = None, bias: Any = None) -> Packed:
    """The form of an [D, F] weight; `scale` is [F] for int8 and [D / 32, F] for int4, `bias` [F].

    NotImplementedError for what the kernel does not multiply.
    """
    values = np.asarray(values)
    D, F = values.shape
    name, panels = values.dtype.name, -(-F // PANEL)
    if name not in PER_LINE:
        raise NotImplementedError(f"values are {name}; {', '.join(PER_LINE)} are built")
    groups = {"int8": (), "int4": (-(-D // GROUP),)}.get(name)
    if (None if scale is None else np.shape(scale)) != (None if groups is None else (*groups, F)):
        raise NotImplementedError(
            f"the scale of {name} values {[D, F]} is {None if scale is None else list(np.shape(scale))}; one an output "
            f"channel is built for int8, one in {GROUP} summed elements for int4, none for others"
        )
    n = PER_LINE[name]
    lines = 4 if name == "int4" else 16
    chunks = -(-D // (lines * n))
    raw = values.astype(np.int8) & 15 if name == "int4" else values.view({2: np.uint16}.get(values.itemsize, name))
    padded = np.zeros((chunks * lines * n, panels * PANEL), raw.dtype)
    padded[:D, :F] = raw
    if name == "int4":
        nibbles = padded.reshape(chunks, lines, 4, 2, panels, 2, TILE).astype(np.uint16)
        words = nibbles[:, :, 0] | nibbles[:, :, 1] << 4 | nibbles[:, :, 2] << 8 | nibbles[:, :, 3] << 12
        packed = words.transpose(3, 0, 4, 1, 5, 2)
    else:
        packed = padded.reshape(chunks, lines, n, panels, 2, TILE).transpose(3, 0, 4, 1, 5, 2)
    packed = np.ascontiguousarray(packed)
    if name == "bfloat16":
        packed = packed.view(ml_dtypes.bfloat16)
    if scale is not None:
        scales = _columns(np.asarray(scale, np.float32).reshape(-1, F), panels)
        scale = jnp.asarray(np.ascontiguousarray(scales.transpose(1, 0, 2)) if name == "int4" else scales[0])
    if bias is not None:
        bias = jnp.asarray(_columns(np.asarray(bias, np.float32)[None], panels)[0])
    return Packed(jnp.asarray(packed), scale, bias, D, F)


def pack_gated(gates: tuple[Any, Any, Any], values: tuple[Any, Any, Any]) -> Packed:
    """Two weights of one shape, each with its scale and bias, as the one whose product is a gate and what it
    multiplies."""
    together = (None if one is None else _by_turns(one, other) for one, other in zip(gates, values, strict=True))
    return dataclasses.replace(pack(*together), F=2 * gates[0].shape[1], gated=True)


def _by_turns(gates: Any, values: Any) -> np.ndarray:
    """The columns of two matrices or vectors of columns, 16 of the one and 16 of the other."""
    gates, values = np.asarray(gates), np.asarray(values)
    *rows, F = gates.shape
    tiles = -(-F // TILE)
    both = np.zeros((*rows, tiles, 2, TILE), gates.dtype)
    for i, one in enumerate((gates, values)):
        padded = np.zeros((*rows, tiles * TILE), gates.dtype)
        padded[..., :F] = one
        both[..., i, :] = padded.reshape(*rows, tiles, TILE)
    return both.reshape(*rows, tiles * PANEL)


def _columns(x: np.ndarray, panels: int) -> np.ndarray:
    """[G, F] as [G, panels, 32], with zeros after the last."""
    padded = np.zeros((x.shape[0], panels * PANEL), x.dtype)
    padded[:, : x.shape[1]] = x
    return padded.reshape(x.shape[0], panels, PANEL)
