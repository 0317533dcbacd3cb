"""Top-k, top-p and min-p on TPUs: the logits of a block of rows are read once, and bisected in on-chip memory."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from flexjax.kernels import registry
from flexjax.kernels.sample_top.xla import largest

BLOCK_ROWS = 8  # Rows of a float32 tile.
VMEM_BYTES = 64 * 2**20  # Of 128 MiB; the rest is XLA's.


def sample_top(
    logits: Float[Array, "B V"], top_k: Int[Array, "B"], top_p: Float[Array, "B"], min_p: Float[Array, "B"]
) -> Float[Array, "B"]:
    """The contract of `api.py`."""
    B, V = logits.shape
    if 4 * BLOCK_ROWS * V * logits.dtype.itemsize > VMEM_BYTES:  # Two blocks in flight, the weights, and room.
        raise NotImplementedError(f"{BLOCK_ROWS} rows of {V} logits do not fit the on-chip memory")
    registry.refuse_mesh()

    def body(k_ref, p_ref, floor_ref, logits_ref, limit_ref, weights_ref):
        rows, top_p = (BLOCK_ROWS, 1), p_ref[...]
        total = lambda x: jnp.sum(x, axis=1, keepdims=True)
        k = jnp.where(k_ref[...] > 0, jnp.minimum(k_ref[...], V), V).astype(jnp.float32)  # Exact up to 2**24.
        count = lambda t: total(jnp.where(logits_ref[...] >= t, 1.0, 0.0))
        limit = largest(rows, lambda t: count(t) >= k)
        top = jnp.max(logits_ref[...], axis=1, keepdims=True)
        weights_ref[...] = jnp.where(logits_ref[...] >= limit, jnp.exp(logits_ref[...] - top), 0.0)
        wanted = top_p * total(weights_ref[...])
        mass = lambda t: total(jnp.where(logits_ref[...] >= t, weights_ref[...], 0.0))
        nucleus = largest(rows, lambda t: mass(t) >= wanted)
        limit = jnp.where(top_p < 1, jnp.maximum(limit, nucleus), limit)
        limit_ref[...] = jnp.maximum(limit, top + jnp.log(floor_ref[...]))

    column = pl.BlockSpec((BLOCK_ROWS, 1), lambda b: (b, 0))
    return pl.pallas_call(
        body,
        grid=(pl.cdiv(B, BLOCK_ROWS),),
        in_specs=[column, column, column, pl.BlockSpec((BLOCK_ROWS, V), lambda b: (b, 0))],
        out_specs=column,
        out_shape=jax.ShapeDtypeStruct((B, 1), jnp.float32),
        scratch_shapes=[pltpu.VMEM((BLOCK_ROWS, V), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=VMEM_BYTES),
        cost_estimate=pl.CostEstimate(flops=0, transcendentals=logits.size, bytes_accessed=logits.nbytes),
        name="sample_top",
    )(top_k[:, None], top_p[:, None], min_p[:, None], logits)[:, 0]
