"""The short causal convolution in plain JAX that runs anywhere: shifted products, and the states' part beside them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flexjax.kernels.recurrent import rows_of


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
    T, num_slots, W = x.shape[0], states.shape[0], weight.shape[0]
    rows = rows_of(T, num_slots, query_starts, state_slots, fresh)
    x32, weight = x.astype(jnp.float32), weight.astype(jnp.float32)

    if max_query_len == 1:
        state = jnp.where(rows.starts_at_zero[:, None, None], 0, states[jnp.minimum(rows.slot, num_slots - 1)])
        state = jnp.concatenate([state[:, 1:], x[:, None]], axis=1)
        y = jnp.sum(state.astype(jnp.float32) * weight[None], axis=1)
        return _finish(y, rows.live, bias, silu, x.dtype), states.at[rows.slot].set(state, mode="drop")

    y = x32 * weight[None, -1]
    for back in range(1, W):
        before = jnp.pad(x32, ((back, 0), (0, 0)))[:T]
        # Not a product with zero: a neighbour's rows, or padding, may hold NaN.
        y = y + jnp.where((rows.offset >= back)[:, None], before, 0.0) * weight[None, W - 1 - back]

    # What the inputs of earlier calls add to the first W - 1 rows of each sequence.
    state = jnp.where(fresh[:, None, None], 0, states[state_slots])
    earlier = state[:, 1:].astype(jnp.float32)
    new = jnp.diff(query_starts)
    for offset in range(W - 1):
        added = jnp.sum(earlier[:, offset:] * weight[None, : W - 1 - offset], axis=1)
        y = y.at[jnp.where(offset < new, query_starts[:-1] + offset, T)].add(added, mode="drop")

    position = new[:, None] - W + jnp.arange(W, dtype=jnp.int32)[None]  # Of the last W inputs, in this call.
    here = x[jnp.clip(query_starts[:-1, None] + position, 0, T - 1)]
    before = jnp.take_along_axis(state, jnp.clip(position + W, 0, W - 1)[:, :, None], axis=1)
    last = jnp.where((position >= 0)[:, :, None], here, before)
    states = states.at[jnp.where(new > 0, state_slots, num_slots)].set(last, mode="drop")
    return _finish(y, rows.live, bias, silu, x.dtype), states


def short_convolution_dense(
    x: Float[Array, "B T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None,
    state: Float[Array, "B W D"] | None,
    *,
    silu: bool,
) -> tuple[Float[Array, "B T D"], Float[Array, "B W D"]]:
    """The contract of `api.py`."""
    W, T = weight.shape[0], x.shape[1]
    if state is None:
        state = jnp.zeros((x.shape[0], *weight.shape), x.dtype)
    window = jnp.concatenate([state.astype(jnp.float32), x.astype(jnp.float32)], axis=1)
    weight = weight.astype(jnp.float32)
    y = x.astype(jnp.float32) * weight[None, None, -1]
    for w in range(W - 1):
        y = y + window[:, w + 1 : w + 1 + T] * weight[None, None, w]
    y = y if bias is None else y + bias.astype(jnp.float32)[None, None]
    return (jax.nn.silu(y) if silu else y).astype(x.dtype), window[:, T:].astype(state.dtype)


def _finish(y: Float[Array, "T D"], live: Bool[Array, "T"], bias: Float[Array, "D"] | None, silu: bool, dtype):
    y = y if bias is None else y + bias.astype(jnp.float32)[None]
    return jnp.where(live[:, None], jax.nn.silu(y) if silu else y, 0.0).astype(dtype)
