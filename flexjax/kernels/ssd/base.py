"""The formula of SSD in plain JAX: one row at a time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def step(
    h: Float[Array, "N D"],
    x: Float[Array, "D"],
    dt: Float[Array, "H"],
    A: Float[Array, "H"],
    B: Float[Array, "G N"],
    C: Float[Array, "G N"],
    skip: Float[Array, "H"],
) -> tuple[Float[Array, "N D"], Float[Array, "D"]]:
    """The next state and this row's output; all float32."""
    head = jnp.repeat(jnp.arange(len(A)), len(x) // len(A))  # Of each channel,
    group = head // (len(A) // len(B))  # and its group.
    h = jnp.exp(dt * A)[head][None] * h + B[group].T * (dt[head] * x)[None]
    return h, jnp.sum(h * C[group].T, axis=0) + skip[head] * x


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
    del max_query_len  # The formula needs no bound.
    T, num_slots, num_sequences = x.shape[0], states.shape[0], state_slots.shape[0]
    row = jnp.arange(T)
    live = row < query_starts[num_sequences]
    sequence = jnp.clip(jnp.searchsorted(query_starts[1:], row, side="right"), 0, num_sequences - 1)
    slot = jnp.where(live, state_slots[sequence], num_slots)  # Out of bounds: the write is dropped.
    A, skip = A.astype(jnp.float32), skip.astype(jnp.float32)

    def one(carry, of_row):
        states, h = carry
        inputs, first, new, slot, is_live = of_row
        h = jnp.where(first, jnp.where(new, 0.0, states[slot].astype(jnp.float32)), h)
        x_t, dt_t, B_t, C_t = (a.astype(jnp.float32) for a in inputs)
        h, y = step(h, x_t, dt_t, A, B_t, C_t, skip)
        states = states.at[slot].set(h.astype(states.dtype), mode="drop")
        return (states, h), jnp.where(is_live, y, 0.0).astype(x.dtype)

    carry = (states, jnp.zeros(states.shape[1:], jnp.float32))
    of_rows = ((x, dt, B, C), row == query_starts[sequence], fresh[sequence], slot, live)
    (states, _), out = jax.lax.scan(one, carry, of_rows)
    return out, states


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
    A, skip = A.astype(jnp.float32), skip.astype(jnp.float32)
    if state is None:
        state = jnp.zeros((x.shape[0], B.shape[3], x.shape[2]), jnp.float32)

    def one_sequence(h, inputs):
        def one(h, of_row):
            x_t, dt_t, B_t, C_t = (a.astype(jnp.float32) for a in of_row)
            return step(h, x_t, dt_t, A, B_t, C_t, skip)

        h, y = jax.lax.scan(one, h, inputs)
        return y, h

    out, last = jax.vmap(one_sequence)(state.astype(jnp.float32), (x, dt, B, C))
    return out.astype(x.dtype), last.astype(state.dtype)
