"""The selective scan in plain JAX that runs anywhere.

Row after row within a sequence: on CPUs a parallel scan (`jax.lax.associative_scan`) is four to seven times slower.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flexjax.kernels.recurrent import rows_of

BLOCK_ROWS = 64  # Between two states that are kept for the gradients.


def selective_scan(
    x: Float[Array, "T D"],
    dt: Float[Array, "T D"],
    A: Float[Array, "N D"],
    B: Float[Array, "T N"],
    C: Float[Array, "T N"],
    skip: Float[Array, "D"],
    dt_bias: Float[Array, "D"],
    z: Float[Array, "T D"] | None,
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
    delta, weighted = _steps(x, dt, dt_bias)
    A, B, C = (a.astype(jnp.float32) for a in (A, B, C))

    if max_query_len == 1:
        h = jnp.where(rows.starts_at_zero[:, None, None], 0, states[jnp.minimum(rows.slot, num_slots - 1)])
        h, y = _row(A[None], h.astype(jnp.float32), (delta, weighted, B, C))
        states = states.at[rows.slot].set(h.astype(states.dtype), mode="drop")
    else:
        first = jnp.where(fresh[:, None, None], 0, states[state_slots])
        sequence = jnp.where(rows.live, rows.sequence, state_slots.shape[0])  # Out of bounds: the write is dropped.

        def one(carry, of_row):
            h, last = carry
            inputs, begins, sequence = of_row
            h = jnp.where(begins, first[sequence].astype(jnp.float32), h)
            h, y = _row(A, h, inputs)
            # Every row writes: a branch would cost more.
            return (h, last.at[sequence].set(h.astype(last.dtype), mode="drop")), y

        of_rows = ((delta, weighted, B, C), rows.offset == 0, sequence)
        (_, last), y = jax.lax.scan(one, (jnp.zeros_like(A), first), of_rows, unroll=4)
        has_rows = query_starts[1:] > query_starts[:-1]
        states = states.at[jnp.where(has_rows, state_slots, num_slots)].set(last, mode="drop")
    return jnp.where(rows.live[:, None], _finish(y, x, skip, z), 0).astype(x.dtype), states


def selective_scan_dense(
    x: Float[Array, "B T D"],
    dt: Float[Array, "B T D"],
    A: Float[Array, "N D"],
    B: Float[Array, "B T N"],
    C: Float[Array, "B T N"],
    skip: Float[Array, "D"],
    dt_bias: Float[Array, "D"],
    z: Float[Array, "B T D"] | None,
    state: Float[Array, "B N D"] | None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B N D"]]:
    """The contract of `api.py`."""
    T = x.shape[1]
    block = min(BLOCK_ROWS, T)
    delta, weighted = _steps(x, dt, dt_bias)
    A = A.astype(jnp.float32)

    def blocks(a: Float[Array, "B T C"]) -> Float[Array, "blocks block B C"]:
        # Rows added at the end leave the state as it is: their step is 0.
        a = jnp.pad(a.astype(jnp.float32), ((0, 0), (0, -T % block), (0, 0)))
        return jnp.swapaxes(a, 0, 1).reshape(-1, block, a.shape[0], a.shape[2])

    one_block = lambda h, inputs: jax.lax.scan(functools.partial(_row, A[None]), h, inputs)
    last_dtype = jnp.float32 if state is None else state.dtype
    h = jnp.zeros((x.shape[0], *A.shape), jnp.float32) if state is None else state.astype(jnp.float32)
    h, y = jax.lax.scan(jax.checkpoint(one_block), h, tuple(map(blocks, (delta, weighted, B, C))))
    y = jnp.swapaxes(y.reshape(-1, *y.shape[2:]), 0, 1)[:, :T]
    return _finish(y, x, skip, z).astype(x.dtype), h.astype(last_dtype)


def _steps(
    x: Float[Array, "*rows D"], dt: Float[Array, "*rows D"], dt_bias: Float[Array, "D"]
) -> tuple[Float[Array, "*rows D"], Float[Array, "*rows D"]]:
    """The step of every channel, and what it takes of its input."""
    bias = jnp.expand_dims(dt_bias.astype(jnp.float32), range(dt.ndim - 1))
    delta = jax.nn.softplus(dt.astype(jnp.float32) + bias)
    return delta, delta * x.astype(jnp.float32)


def _row(A: Float[Array, "*one N D"], h: Float[Array, "*rows N D"], inputs: tuple[Array, ...]) -> tuple[Array, Array]:
    delta, weighted, B, C = inputs
    h = jnp.exp(delta[..., None, :] * A) * h + B[..., :, None] * weighted[..., None, :]
    return h, jnp.sum(h * C[..., :, None], axis=-2)


def _finish(
    y: Float[Array, "*rows D"], x: Float[Array, "*rows D"], skip: Float[Array, "D"], z: Float[Array, "*rows D"] | None
) -> Float[Array, "*rows D"]:
    y = y + jnp.expand_dims(skip.astype(jnp.float32), range(x.ndim - 1)) * x.astype(jnp.float32)
    return y if z is None else y * jax.nn.silu(z.astype(jnp.float32))
