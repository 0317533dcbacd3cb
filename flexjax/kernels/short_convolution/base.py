"""The formula of the short causal convolution in plain JAX: one row at a time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def step(
    state: Float[Array, "W D"],
    x: Float[Array, "D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None,
    silu: bool,
) -> tuple[Float[Array, "W D"], Float[Array, "D"]]:
    """The last inputs, this one among them, and this row's output; all float32."""
    state = jnp.concatenate([state[1:], x[None]])
    y = jnp.sum(state * weight, axis=0)
    if bias is not None:
        y = y + bias
    return state, y * jax.nn.sigmoid(y) if silu else y


def short_convolution(
    x: Float[Array, "T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None,
    states: Float[Array, "slots W D"],
    query_starts: Int[Array, "B+1"],
    state_slots: Int[Array, "B"],
    fresh: Bool[Array, "B"],
    *,
    silu: bool,
    max_query_len: int,
) -> tuple[Float[Array, "T D"], Float[Array, "slots W D"]]:
    """The contract of `api.py`."""
    del max_query_len  # The formula needs no bound.
    T, num_slots, num_sequences = x.shape[0], states.shape[0], state_slots.shape[0]
    row = jnp.arange(T)
    live = row < query_starts[num_sequences]
    sequence = jnp.clip(jnp.searchsorted(query_starts[1:], row, side="right"), 0, num_sequences - 1)
    slot = jnp.where(live, state_slots[sequence], num_slots)  # Out of bounds: the write is dropped.
    weight = weight.astype(jnp.float32)
    bias = None if bias is None else bias.astype(jnp.float32)

    def one(carry, of_row):
        states, state = carry
        x_t, first, new, slot, is_live = of_row
        state = jnp.where(first, jnp.where(new, 0.0, states[slot].astype(jnp.float32)), state)
        state, y = step(state, x_t.astype(jnp.float32), weight, bias, silu)
        states = states.at[slot].set(state.astype(states.dtype), mode="drop")
        return (states, state), jnp.where(is_live, y, 0.0).astype(x.dtype)

    carry = (states, jnp.zeros(states.shape[1:], jnp.float32))
    of_rows = (x, row == query_starts[sequence], fresh[sequence], slot, live)
    (states, _), out = jax.lax.scan(one, carry, of_rows)
    return out, states


def short_convolution_dense(
    x: Float[Array, "B T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None,
    state: Float[Array, "B W D"] | None,
    *,
    silu: bool,
) -> tuple[Float[Array, "B T D"], Float[Array, "B W D"]]:
    """The contract of `api.py`."""
    weight = weight.astype(jnp.float32)
    bias = None if bias is None else bias.astype(jnp.float32)
    if state is None:
        state = jnp.zeros((x.shape[0], *weight.shape), x.dtype)

    def one_sequence(state, x_TxD):
        state, y = jax.lax.scan(lambda state, x_t: step(state, x_t, weight, bias, silu), state, x_TxD)
        return y, state

    out, last = jax.vmap(one_sequence)(state.astype(jnp.float32), x.astype(jnp.float32))
    return out.astype(x.dtype), last.astype(state.dtype)
