"""Rows times int4 weights on TPUs, whose scales are shared by groups of summed elements.

XLA gives int8 and float8 weights to the matrix units as it reads them, and serves those (README.md has the figures). Of
int4 in groups it makes a copy in bfloat16 first. Here the weights are widened in on-chip memory, on their way from main
memory to the matrix units, which are deeper than a group: `DEPTH` against 32. Two ways around that:

  - few rows: each row is put there once for every group of a depth, zero outside it, so that one product gives the
    sums of all groups apart; they are scaled and added. The products grow by as many times.
  - many rows: the scaled weight as the sum of two bfloat16, whose products are added. Exact to 16 bits of each weight.

Of weights stacked by layers the kernel is given the whole stack and which one it is, and copies nothing of the others.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, Num

from flexjax.kernels import registry

DEPTH = 128  # Summed elements of a matrix unit (of v6e's, half).
APART_ROWS = 32  # Up to so many rows, groups are summed apart.
BLOCK_ROWS = 512  # Of many, which read the weight once.
BLOCK_D = 8192  # Summed elements at a time,
BLOCK_D_MANY = 4096  # and of many rows.
BLOCK_F = 1024  # Columns at a time.
SUBLANES = 8  # Rows of a float32 tile.
VMEM_BYTES = 64 * 2**20  # Of 128 MiB; the rest is XLA's.


def matmul(
    x: Float[Array, "T D"],
    values: Num[Array, "*L D F"],
    scale: Float[Array, "..."] | None,
    *,
    layer: Int[Array, ""] | None = None,
    activation_dtype: str | None = None,
) -> Float[Array, "T F"]:
    """The contract of `api.py`, for int4 values with a scale a group."""
    _refuse(x, values, scale, activation_dtype)
    assert scale is not None
    if layer is None:
        values, scale = values[None], scale[None]
    place = jnp.zeros(1, jnp.int32) if layer is None else layer.reshape(1)
    T, rows = x.shape[0], -(-x.shape[0] // SUBLANES) * SUBLANES
    if rows > BLOCK_ROWS:
        rows = -(-T // BLOCK_ROWS) * BLOCK_ROWS
    x = jnp.pad(x, ((0, rows - T), (0, 0)))
    multiply = _sum_apart if rows <= APART_ROWS else _in_halves
    return multiply(x, values, scale, place)[:T]


def _refuse(x: Array, values: Array, scale: Array | None, activation_dtype: str | None) -> None:
    if values.dtype != jnp.int4 or scale is None or scale.ndim != values.ndim:
        raise NotImplementedError(f"{values.dtype.name} values are XLA's to serve; this is for int4 in groups")
    (D, F), group = values.shape[-2:], values.shape[-2] // scale.shape[-2]
    if x.dtype != jnp.bfloat16 or activation_dtype is not None:
        rows = activation_dtype or x.dtype.name
        raise NotImplementedError(f"rows are multiplied in {rows}; bfloat16 is served")
    if D % DEPTH or F < DEPTH or DEPTH % group or group % 8:
        raise NotImplementedError(
            f"D={D} and F={F} in groups of {group}; D in multiples of {DEPTH}, F from {DEPTH} on and groups of 8 to "
            f"{DEPTH} are served"
        )
    registry.refuse_mesh()


def _sum_apart(
    x: Float[Array, "T D"], values: Num[Array, "L D F"], scale: Float[Array, "L G F"], layer: Int[Array, "1"]
) -> Float[Array, "T F"]:
    """Few rows."""
    (T, D), per_depth = x.shape, DEPTH * scale.shape[1] // x.shape[1]
    # All DEPTH elements stay in the lanes: with groups as a dimension of their own XLA takes longer to lay the rows out
    # than the kernel takes to multiply with them.
    of_group = jnp.repeat(jnp.eye(per_depth, dtype=x.dtype), DEPTH // per_depth, axis=1)
    x_JxGTxI = jnp.einsum("TJI,GI->JGTI", x.reshape(T, -1, DEPTH), of_group).reshape(-1, per_depth * T, DEPTH)

    def sums(x_ref, values_ref, scale_ref):
        total = jnp.zeros((T, values_ref.shape[1]), jnp.float32)
        for j in range(x_ref.shape[0]):
            weight = values_ref[j * DEPTH : (j + 1) * DEPTH, :].astype(x_ref.dtype)
            product = jnp.dot(x_ref[j], weight, preferred_element_type=jnp.float32)
            for g in range(per_depth):
                total += product[g * T : (g + 1) * T] * scale_ref[pl.ds(j * per_depth + g, 1), :]
        return total

    block = block_of(D, BLOCK_D, 8 * DEPTH // per_depth)
    spec = pl.BlockSpec((block // DEPTH, per_depth * T, DEPTH), lambda t, f, d, _: (d, 0, 0))
    return _call(sums, spec, block, T, per_depth, x_JxGTxI, values, scale, layer)


def _in_halves(
    x: Float[Array, "T D"], values: Num[Array, "L D F"], scale: Float[Array, "L G F"], layer: Int[Array, "1"]
) -> Float[Array, "T F"]:
    """Many rows."""
    T, D = x.shape
    group, rows = D // scale.shape[1], min(T, BLOCK_ROWS)
    block = block_of(D, BLOCK_D_MANY, 8 * group)
    step = math.gcd(block, 2 * DEPTH)

    def sums(x_ref, values_ref, scale_ref):
        total = jnp.zeros((rows, values_ref.shape[1]), jnp.float32)
        for at in range(0, block, step):
            scales = scale_ref[pl.ds(at // group, step // group), :]
            weight = values_ref[at : at + step, :].astype(jnp.float32).reshape(step // group, group, -1)
            weight = (weight * scales[:, None]).reshape(step, -1)
            high = weight.astype(jnp.bfloat16)
            low = (weight - high.astype(jnp.float32)).astype(jnp.bfloat16)
            for half in (high, low):
                total += jnp.dot(x_ref[:, at : at + step], half, preferred_element_type=jnp.float32)
        return total

    spec = pl.BlockSpec((rows, block), lambda t, f, d, _: (t, d))
    return _call(sums, spec, block, rows, 2, x, values, scale, layer)


def _call(
    sums: Callable[..., Array],
    rows_spec: pl.BlockSpec,
    block: int,
    rows: int,
    products: int,
    x: Float[Array, "..."],
    values: Num[Array, "L D F"],
    scale: Float[Array, "L G F"],
    layer: Int[Array, "1"],
) -> Float[Array, "T F"]:
    """The blocks' `sums`, added along D and put side by side; `products` is how often a weight is multiplied."""
    (D, F), G = values.shape[1:], scale.shape[1]
    group = D // G
    blocks = x.shape[0] // rows if x.ndim == 2 else 1
    columns = block_of(F, BLOCK_F, DEPTH) if F % DEPTH == 0 else min(BLOCK_F, F // DEPTH * DEPTH)

    def body(layer_ref, x_ref, values_ref, scale_ref, out_ref):
        part = sums(x_ref, values_ref, scale_ref)
        first = pl.program_id(2) == 0

        @pl.when(first)
        def _():
            out_ref[...] = part

        @pl.when(jnp.logical_not(first))
        def _():
            out_ref[...] += part

    # XLA would else copy a whole stack that fits into on-chip memory, in every layer.
    values, scale = (pltpu.with_memory_space_constraint(stack, pltpu.HBM) for stack in (values, scale))
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(blocks, pl.cdiv(F, columns), D // block),  # Of the last columns a part may lie outside.
            in_specs=[
                rows_spec,
                pl.BlockSpec((None, block, columns), lambda t, f, d, layer: (layer[0], d, f)),
                pl.BlockSpec((None, block // group, columns), lambda t, f, d, layer: (layer[0], d, f)),
            ],
            out_specs=pl.BlockSpec((rows, columns), lambda t, f, d, _: (t, f)),
        ),
        out_shape=jax.ShapeDtypeStruct((blocks * rows, F), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * blocks * rows * D * F,
            transcendentals=0,
            bytes_accessed=blocks * (D * F // 2 + 4 * G * F) + x.nbytes + 4 * blocks * rows * F,
        ),
        name="int4_matmul",
    )(layer, x, values, scale)


def block_of(size: int, most: int, unit: int) -> int:
    """The largest divisor of `size` up to `most`, in whole units; all of it where it has none."""
    return max((block for block in range(unit, min(size, most) + 1, unit) if size % block == 0), default=size)
