"""Gathered LoRA matmul on TPUs: adapters in groups that fill the lanes of the matrix units.

One adapter of rank 16 would use an eighth of a matrix unit. So the adapters that the batch uses are taken `LANES // R`
at a time, each fetched once by its own index, and multiplied with all rows; of the products, each row keeps those of
its own adapter. No row is moved.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from flexjax.kernels.lora_matmul.rows import AdapterRows

LANES = 128  # Of a vector register, and columns of a matrix unit.
BLOCK_D = 4096  # Summed elements of the first product at a time.
BLOCK_F = 2048  # Columns of the second at a time.
BLOCK_BYTES = 8 * 2**20  # Of rows or results that a block holds; each is there twice, being moved and computed on.
VMEM_BYTES = 64 * 2**20  # Of 128 MiB; the rest is XLA's.


def lora_matmul(
    y: Float[Array, "T F"],
    x: Float[Array, "T D"],
    a: Float[Array, "A R D"],
    b: Float[Array, "A R F"],
    rows: AdapterRows,
) -> Float[Array, "T F"]:
    """The contract of `api.py`. The declared cost is that of as many adapters as the batch could use."""
    _refuse(x, a)
    per_group = max(1, LANES // a.shape[1])
    return _expand(rows, y, _shrink(rows, x, a, per_group), b, per_group)


def _refuse(x: Array, a: Array) -> None:
    R, tile = a.shape[1], 8 * 4 // x.dtype.itemsize  # Rows of the tile that arrays are made of.
    if R % tile:
        raise NotImplementedError(f"rank {R} is no multiple of {tile}, the rows of a tile in {x.dtype.name}")


def _shrink(
    rows: AdapterRows, x: Float[Array, "T D"], a: Float[Array, "A R D"], per_group: int
) -> Float[Array, "T columns"]:
    """x @ a[i] for every adapter i in use, side by side; zero but for the row's own."""
    (T, D), R = x.shape, a.shape[1]
    groups, columns = pl.cdiv(rows.used.size, per_group), per_group * R
    block = block_of(D, BLOCK_D, T * x.dtype.itemsize)

    def body(used_ref, count_ref, slot_ref, x_ref, *refs):
        *a_refs, h_ref, sums_ref = refs
        g, d = pl.program_id(0), pl.program_id(1)

        @pl.when(g * per_group < count_ref[0])
        def _():
            product = _dot(x_ref[...], jnp.concatenate([ref[0] for ref in a_refs], axis=0), 1)
            sums_ref[...] = jnp.where(d == 0, product, sums_ref[...] + product)

        @pl.when(d == pl.num_programs(1) - 1)
        def _():
            column = jax.lax.broadcasted_iota(jnp.int32, (T, columns), 1)
            own = slot_ref[...] == g * per_group + column // R
            h_ref[...] = jnp.where(own, sums_ref[...], 0.0).astype(h_ref.dtype)

    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(groups, D // block),
            in_specs=[
                pl.BlockSpec((T, 1), lambda g, d, *_: (0, 0)),
                pl.BlockSpec((T, block), lambda g, d, *_: (0, d)),
                *_one_by_one(rows, per_group, (1, R, block), lambda i, g, d: (i, 0, d)),
            ],
            out_specs=pl.BlockSpec((T, columns), lambda g, d, *_: (0, g)),
            scratch_shapes=[pltpu.VMEM((T, columns), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((T, groups * columns), x.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=_cost(rows, x, a, x.nbytes),
        name="lora_shrink",
    )(rows.used, rows.count, rows.slot[:, None], x, *[a] * per_group)


def _expand(
    rows: AdapterRows,
    y: Float[Array, "T F"],
    h: Float[Array, "T columns"],
    b: Float[Array, "A R F"],
    per_group: int,
) -> Float[Array, "T F"]:
    """y + h @ b of the adapters in use."""
    (T, F), R = y.shape, b.shape[1]
    groups = pl.cdiv(rows.used.size, per_group)
    block = block_of(F, BLOCK_F, T * y.dtype.itemsize)

    def body(used_ref, count_ref, y_ref, h_ref, *refs):
        *b_refs, out_ref = refs
        g = pl.program_id(1)

        @pl.when(g == 0)
        def _():
            out_ref[...] = y_ref[...]

        @pl.when(g * per_group < count_ref[0])
        def _():
            out_ref[...] += _dot(h_ref[...], jnp.concatenate([ref[0] for ref in b_refs], axis=0), 0)

    by_column = pl.BlockSpec((T, block), lambda f, g, *_: (0, f))
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(F // block, groups),
            in_specs=[
                by_column,
                pl.BlockSpec((T, per_group * R), lambda f, g, *_: (0, g)),
                *_one_by_one(rows, per_group, (1, R, block), lambda i, f, g: (i, 0, f), group=1),
            ],
            out_specs=by_column,
        ),
        out_shape=jax.ShapeDtypeStruct(y.shape, y.dtype),
        input_output_aliases={2: 0},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=_cost(rows, y, b, 2 * y.nbytes),
        name="lora_expand",
    )(rows.used, rows.count, y, h, *[b] * per_group)


def _one_by_one(rows: AdapterRows, per_group: int, block: tuple[int, ...], place, group: int = 0) -> list[pl.BlockSpec]:
    """The adapters of a group, one an argument; `group` is the axis of the grid that counts groups, and `place` the
    block of adapter i in a step of the grid."""

    def spec(k: int) -> pl.BlockSpec:
        def index(first, second, used, count):
            u = jnp.minimum((first, second)[group] * per_group + k, rows.used.size - 1)
            return place(used[u], first, second)

        return pl.BlockSpec(block, index)

    return [spec(k) for k in range(per_group)]


def _dot(rows: Float[Array, "T C"], weight: Float[Array, "..."], summed: int) -> Float[Array, "T O"]:
    # Only float32 has more than one way to be multiplied.
    precision = jax.lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        rows, weight, (((1,), (summed,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def block_of(size: int, most: int, bytes_each: int) -> int:
    """The largest divisor of `size` in whole lanes, up to `most` and to what `BLOCK_BYTES` hold; all of a size that is
    no multiple of them."""
    if size % LANES:
        return size
    most = max(LANES, min(most, BLOCK_BYTES // bytes_each))
    return max(block for block in range(LANES, min(size, most) + 1, LANES) if size % block == 0)


def _cost(rows: AdapterRows, across: Array, weight: Array, row_bytes: int) -> pl.CostEstimate:
    (T, width), adapters, rank = across.shape, rows.used.size, weight.shape[1]
    return pl.CostEstimate(
        flops=2 * T * width * adapters * rank,
        transcendentals=0,
        bytes_accessed=adapters * rank * width * weight.dtype.itemsize + row_bytes,
    )
