"""Short causal convolution: the contract, and which body serves it."""

import functools

from jaxtyping import Array, Bool, Float, Int

from flexjax.kernels import recurrent, registry
from flexjax.kernels.over_axis import over_axis
from flexjax.kernels.short_convolution import base, pallas_tpu, xla

OP, DENSE_OP = "short_convolution", "short_convolution_dense"
BODIES = {
    "base": base.short_convolution,
    "xla": xla.short_convolution,
    "pallas_tpu": pallas_tpu.short_convolution,
    "triton_gpu": registry.on_demand(
        "flexjax.kernels.short_convolution.triton_gpu", OP, package="jax_triton", extra="cuda"
    ),
}
DENSE_BODIES = {"base": base.short_convolution_dense, "xla": xla.short_convolution_dense}
# `base` is the formula to test against, too slow to fall back on.
ORDER = {"tpu": ("pallas_tpu", "xla"), "gpu": ("triton_gpu", "xla")}
ANYWHERE = ("xla",)


def short_convolution(
    x: Float[Array, "T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None,
    states: Float[Array, "slots W D"],
    query_starts: Int[Array, "B+1"],
    state_slots: Int[Array, "B"],
    fresh: Bool[Array, "B"],
    *,
    silu: bool = True,
    max_query_len: int,
    body: str | None = None,
) -> tuple[Float[Array, "T D"], Float[Array, "slots W D"]]:
    """Every channel of every row convolved with the last W inputs of its own sequence, and the states after it.

    Rows and states belong together as `flexjax.kernels.recurrent` says. A state is the last W inputs, oldest first, as
    published caches hold them; the oldest is never read. (Of three rows a slot a TPU's compiler makes three pools, and
    copies them for a kernel.) Equivalent, for the rows x of one sequence, to

        window = concatenate([zeros if fresh else states[slot], x])
        y[t] = sum(weight[w] * window[t + 1 + w] for w in range(W)) + bias
        out = silu(y) if silu else y
        states[slot] = window[-W:]

    with sums in float32 and the result in x's dtype. Padding rows give zeros and write nothing. Under jit, states is
    updated in place where its buffer is donated. For gradients, use
    `short_convolution_dense`.

    The published depthwise weight, `[D, 1, W]`, is the transpose: `weight[w, d] = published[d, 0, w]`.

    On a mesh (`jax.set_mesh`) every device computes the channels that it holds (the logical axis "inner").

    Args:
      states: in x's dtype.
      max_query_len: bound of the rows of any sequence; 1 promises pure decoding.
      body: exactly this one of `BODIES`; by default the environment's, else the first that can serve.

    Raises:
      ValueError: shapes or dtypes that do not fit each other.
      NotImplementedError: the body asked for does not serve the call.
    """
    _check(x.shape[1], weight, bias)
    recurrent.check_batch(states, query_starts, state_slots, fresh, max_query_len, weight.shape)
    if states.dtype != x.dtype:
        raise ValueError(f"states hold inputs and must have x's dtype; x is {x.dtype}, states are {states.dtype}.")
    order = ORDER.get(registry.platform(), ANYWHERE)
    arguments = (x, weight, bias, states, query_starts, state_slots, fresh)
    serve = functools.partial(registry.serve, OP, BODIES, order, body, silu=silu, max_query_len=max_query_len)
    places = (1, 1, None if bias is None else 0, 2, None, None, None)
    return over_axis(serve, "inner", x.shape[1], arguments, places, (1, 2))


def short_convolution_dense(
    x: Float[Array, "B T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None,
    state: Float[Array, "B W D"] | None = None,
    *,
    silu: bool = True,
    body: str | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B W D"]]:
    """The same for sequences of equal length, from `state` (None: zeros): outputs, and the state of each at its end.

    Differentiable.
    """
    _check(x.shape[2], weight, bias)
    if state is not None:
        recurrent.check_shapes(state=(state, (x.shape[0], *weight.shape)))
    return registry.serve(DENSE_OP, DENSE_BODIES, ANYWHERE, body, x, weight, bias, state, silu=silu)


def _check(channels: int, weight: Array, bias: Array | None) -> None:
    recurrent.check_shapes(weight=(weight, (weight.shape[0], channels)))
    if weight.shape[0] < 2:
        raise ValueError(f"weight must have 2 rows or more: one input is no convolution; got {weight.shape}.")
    if bias is not None:
        recurrent.check_shapes(bias=(bias, (channels,)))
