"""SSD in plain JAX that runs anywhere: within a block of rows by matrix products, from block to block by the state."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flexjax.kernels.recurrent import rows_of

BLOCK_ROWS = 64
ROW_LOOP = "blocks_of_rows"  # Name of the loop in a compiled program, which cannot tell how often it turns.


def ssd(
    x: Float[Array, "T D"],
    dt: Float[Array, "T H"],
    A: Float[Array, "H"],
    B: Float[Array, "T G N"],
    C: Float[Array, "T G N"],
    skip: Float[Array, "H"],
    states: Float[Array, "slots N D"],
    query_starts: Int[Array, "B+1"],
    state_slots: Int[Array, "B"],
    fresh: Bool[Array, "B"],
    *,
    max_query_len: int,
) -> tuple[Float[Array, "T D"], Float[Array, "slots N D"]]:
    """The contract of `api.py`."""
    T, num_slots = x.shape[0], states.shape[0]
    rows = rows_of(T, num_slots, query_starts, state_slots, fresh)
    inputs = tuple(a.astype(jnp.float32) for a in (x, dt, B, C))
    A = A.astype(jnp.float32)
    if max_query_len == 1:
        h = jnp.where(rows.starts_at_zero[:, None, None], 0, states[jnp.minimum(rows.slot, num_slots - 1)])
        h, y = _row(A, h.astype(jnp.float32), inputs)
        states = states.at[rows.slot].set(h.astype(states.dtype), mode="drop")
    else:
        h = jnp.where(fresh[:, None, None], 0, states[state_slots]).astype(jnp.float32)
        h, y = _by_blocks(A, h, inputs, query_starts, min(max_query_len, BLOCK_ROWS))
        has_rows = query_starts[1:] > query_starts[:-1]
        slots = jnp.where(has_rows, state_slots, num_slots)
        states = states.at[slots].set(h.astype(states.dtype), mode="drop")
    return jnp.where(rows.live[:, None], y + _skipped(skip, x), 0).astype(x.dtype), states


def ssd_dense(
    x: Float[Array, "B T D"],
    dt: Float[Array, "B T H"],
    A: Float[Array, "H"],
    B: Float[Array, "B T G N"],
    C: Float[Array, "B T G N"],
    skip: Float[Array, "H"],
    state: Float[Array, "B N D"] | None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B N D"]]:
    """The contract of `api.py`."""
    T = x.shape[1]
    block = min(BLOCK_ROWS, T)
    A = A.astype(jnp.float32)

    def blocks(a: Float[Array, "B T ..."]) -> Float[Array, "blocks B block ..."]:
        # Rows added at the end leave the state as it is: their step is 0.
        a = jnp.pad(a.astype(jnp.float32), ((0, 0), (0, -T % block), *[(0, 0)] * (a.ndim - 2)))
        return jnp.swapaxes(a.reshape(a.shape[0], -1, block, *a.shape[2:]), 0, 1)

    def one_block(h, inputs):
        return jax.vmap(_block, in_axes=(None, 0, 0))(A, h, inputs)

    h = jnp.zeros((x.shape[0], B.shape[3], x.shape[2])) if state is None else state.astype(jnp.float32)
    h, y = jax.lax.scan(jax.checkpoint(one_block), h, tuple(map(blocks, (x, dt, B, C))))
    y = jnp.swapaxes(y, 0, 1).reshape(x.shape[0], -1, x.shape[2])[:, :T]
    return (y + _skipped(skip, x)).astype(x.dtype), h.astype(jnp.float32 if state is None else state.dtype)


def _by_blocks(
    A: Float[Array, "H"],
    h: Float[Array, "B N D"],
    inputs: tuple[Array, ...],
    query_starts: Int[Array, "B+1"],
    rows: int,
) -> tuple[Float[Array, "B N D"], Float[Array, "T D"]]:
    """Each sequence's rows in blocks of `rows`, one block after the other."""
    T = inputs[0].shape[0]
    blocks = -(-jnp.diff(query_starts) // rows)
    ends = jnp.cumsum(blocks)
    inputs = tuple(jnp.pad(a, ((0, rows), *[(0, 0)] * (a.ndim - 1))) for a in inputs)

    def step(i, carry):
        h, y = carry
        b = jnp.searchsorted(ends, i, side="right")
        first = query_starts[b] + (i - ends[b] + blocks[b]) * rows
        live = first + jnp.arange(rows) < query_starts[b + 1]
        block = (jax.lax.dynamic_slice_in_dim(a, first, rows) for a in inputs)
        # Not a product with zero: a neighbour's rows, or padding, may hold NaN.
        block = tuple(jnp.where(jnp.expand_dims(live, range(1, a.ndim)), a, 0.0) for a in block)
        h_b, y_block = _block(A, h[b], block)
        # Rows past the sequence's end are written too; the next block, which begins there, overwrites them.
        return h.at[b].set(h_b), jax.lax.dynamic_update_slice_in_dim(y, y_block, first, axis=0)

    with jax.named_scope(ROW_LOOP):
        h, y = jax.lax.fori_loop(0, ends[-1], step, (h, jnp.zeros((T + rows, h.shape[2]))))
    return h, y[:T]


def _block(
    A: Float[Array, "H"], h: Float[Array, "N D"], inputs: tuple[Array, ...]
) -> tuple[Float[Array, "N D"], Float[Array, "T D"]]:
    """The state after a block of rows of one sequence, and the rows' outputs."""
    x, dt, B, C = inputs
    (T, D), (H,), (_, G, N) = x.shape, A.shape, B.shape
    x = (x.reshape(T, H, D // H) * dt[:, :, None]).reshape(T, G, H // G, D // H)  # R heads a group, P channels a head.
    h = h.reshape(N, G, H // G, D // H)
    decay = jnp.cumsum(dt * A[None], axis=0).reshape(T, G, H // G)  # Logarithm, from the block's beginning.
    since = decay[:, None] - decay[None]  # T S G R
    causal = jnp.tril(jnp.ones((T, T), bool))[:, :, None, None]
    since = jnp.exp(jnp.where(causal, since, -jnp.inf))
    scores = jnp.einsum("TGN,SGN->TSG", C, B, precision="highest")
    y = jnp.einsum("TSGR,SGRP->TGRP", since * scores[..., None], x, precision="highest")
    y = y + jnp.einsum("TGN,NGRP->TGRP", C, h, precision="highest") * jnp.exp(decay)[..., None]
    rest = jnp.exp(decay[-1][None] - decay)
    h = h * jnp.exp(decay[-1])[None, ..., None]
    h = h + jnp.einsum("SGN,SGRP->NGRP", B, x * rest[..., None], precision="highest")
    return h.reshape(N, D), y.reshape(T, D)


def _row(
    A: Float[Array, "H"], h: Float[Array, "T N D"], inputs: tuple[Array, ...]
) -> tuple[Float[Array, "T N D"], Float[Array, "T D"]]:
    """One row of each of T sequences: the states after them, and their outputs."""
    x, dt, B, C = inputs
    (T, D), (H,), (_, G, N) = x.shape, A.shape, B.shape
    x = (x.reshape(T, H, D // H) * dt[:, :, None]).reshape(T, G, H // G, D // H)
    decay = jnp.exp(dt * A[None]).reshape(T, 1, G, H // G, 1)
    h = decay * h.reshape(T, N, G, H // G, D // H) + jnp.einsum("TGN,TGRP->TNGRP", B, x, precision="highest")
    y = jnp.einsum("TGN,TNGRP->TGRP", C, h, precision="highest")
    return h.reshape(T, N, D), y.reshape(T, D)


def _skipped(skip: Float[Array, "H"], x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    per_channel = jnp.repeat(skip.astype(jnp.float32), x.shape[-1] // skip.shape[0])
    return jnp.expand_dims(per_channel, range(x.ndim - 1)) * x.astype(jnp.float32)
