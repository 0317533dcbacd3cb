"""The formula of the short causal convolution in plain JAX: one row at a time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def step(
    taps: Float[Array, "W-1 D"],
    x: Float[Array, "D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None,
    silu: bool,
) -> tuple[Float[Array, "W-1 D"], Float[Array, "D"]]:
    """The inputs before the next row, and this row's output; all float32."""
    window = jnp.concatenate([taps, x[None]])
    y = jnp.sum(window * weight, axis=0)
    if bias is not None:
        y = y + bias
    return window[1:], y * jax.nn.sigmoid(y) if silu else y


def short_convolution(
    x: Float[Array, "T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None,
    states: Float[Array, "slots W-1 D"],
    query_starts: Int[Array, "B+1"],
    state_slots: Int[Array, "B"],
    fresh: Bool[Array, "B"],
    *,
    silu: bool,
    max_query_len: int,
) -> tuple[Float[Array, "T D"], Float[Array, "slots W-1 D"]]:
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
        states, taps = carry
        x_t, first, new, slot, is_live = of_row
        taps = jnp.where(first, jnp.where(new, 0.0, states[slot].astype(jnp.float32)), taps)
        taps, y = step(taps, x_t.astype(jnp.float32), weight, bias, silu)
        states = states.at[slot].set(taps.astype(states.dtype), mode="drop")
        return (states, taps), jnp.where(is_live, y, 0.0).astype(x.dtype)

    carry = (states, jnp.zeros(states.shape[1:], jnp.float32))
    of_rows = (x, row == query_starts[sequence], fresh[sequence], slot, live)
    (states, _), out = jax.lax.scan(one, carry, of_rows)
    return out, states


def short_convolution_dense(
    x: Float[Array, "B T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None,
    state: Float[Array, "B W-1 D"] | None,
    *,
    silu: bool,
) -> tuple[Float[Array, "B T D"], Float[Array, "B W-1 D"]]:
    """The contract of `api.py`."""
    weight = weight.astype(jnp.float32)
    bias = None if bias is None else bias.astype(jnp.float32)
    if state is None:
        state = jnp.zeros((x.shape[0], weight.shape[0] - 1, x.shape[2]), x.dtype)

    def one_sequence(taps, x_TxD):
        taps, y = jax.lax.scan(lambda taps, x_t: step(taps, x_t, weight, bias, silu), taps, x_TxD)
        return y, taps

    out, last = jax.vmap(one_sequence)(state.astype(jnp.float32), x.astype(jnp.float32))
    return out.astype(x.dtype), last.astype(state.dtype)
