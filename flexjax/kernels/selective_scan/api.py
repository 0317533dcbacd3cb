"""Selective scan: the contract, and which body serves it."""

import functools

from jaxtyping import Array, Bool, Float, Int

from flexjax.kernels import recurrent, registry
from flexjax.kernels.over_axis import over_axis
from flexjax.kernels.selective_scan import base, pallas_tpu, xla

OP, DENSE_OP = "selective_scan", "selective_scan_dense"
BODIES = {
    "base": base.selective_scan,
    "xla": xla.selective_scan,
    "pallas_tpu": pallas_tpu.selective_scan,
    "triton_gpu": registry.on_demand(
        "flexjax.kernels.selective_scan.triton_gpu", OP, package="jax_triton", extra="cuda"
    ),
}
DENSE_BODIES = {"base": base.selective_scan_dense, "xla": xla.selective_scan_dense}
# `base` is the formula to test against, too slow to fall back on.
ORDER = {"tpu": ("pallas_tpu", "xla"), "gpu": ("triton_gpu", "xla")}
ANYWHERE = ("xla",)


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
    body: str | None = None,
) -> tuple[Float[Array, "T D"], Float[Array, "slots N D"]]:
    """The outputs of every row, and the states after the last row of each sequence.

    Rows and states belong together as `flexjax.kernels.recurrent` says. Equivalent, for the rows of one sequence, to

        h = zeros if fresh else states[slot]                                  # [N, D]
        for every row t:
            delta = softplus(dt[t] + dt_bias)                                 # [D]
            h = exp(delta * A) * h + B[t, :, None] * (delta * x[t])
            y = sum(C[t, :, None] * h, axis=0) + skip * x[t]
            out[t] = y * silu(z[t]) if z is given else y
        states[slot] = h

    in float32, with the result in x's dtype; states are rounded to their own dtype where the call ends, not between
    rows. Padding rows give zeros and write nothing. Under jit, states is updated in place where its buffer is donated.
    For gradients, use `selective_scan_dense`.

    A and states are `[N, D]` where the published ones are `[D, N]`: channels fill the lanes of a TPU. skip is the
    published D.

    On a mesh (`jax.set_mesh`) every device computes the channels that it holds (the logical axis "inner").

    Args:
      max_query_len: bound of the rows of any sequence; 1 promises pure decoding.
      body: exactly this one of `BODIES`; by default the environment's, else the first of the platform's order that can
        serve.

    Raises:
      ValueError: shapes that do not fit each other.
      NotImplementedError: the body asked for does not serve the call.

    Reference: Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", Algorithm 2, with B
    discretised as published code does (delta * B).
    """
    _check(x, dt, A, B, C, skip, dt_bias, z)
    recurrent.check_batch(states, query_starts, state_slots, fresh, max_query_len, A.shape)
    arguments = (x, dt, A, B, C, skip, dt_bias, z, states, query_starts, state_slots, fresh)
    order = ORDER.get(registry.platform(), ANYWHERE)
    serve = functools.partial(registry.serve, OP, BODIES, order, body, max_query_len=max_query_len)
    places = (1, 1, 1, None, None, 0, 0, None if z is None else 1, 2, None, None, None)
    return over_axis(serve, "inner", x.shape[1], arguments, places, (1, 2))


def selective_scan_dense(
    x: Float[Array, "B T D"],
    dt: Float[Array, "B T D"],
    A: Float[Array, "N D"],
    B: Float[Array, "B T N"],
    C: Float[Array, "B T N"],
    skip: Float[Array, "D"],
    dt_bias: Float[Array, "D"],
    z: Float[Array, "B T D"] | None = None,
    state: Float[Array, "B N D"] | None = None,
    *,
    body: str | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B N D"]]:
    """The same for sequences of equal length, from `state` (None: zeros): outputs, and the state of each at its end.

    Differentiable; the `xla` body keeps one state for every `xla.BLOCK_ROWS` rows and computes those between again.
    """
    _check(x, dt, A, B, C, skip, dt_bias, z)
    if state is not None:
        recurrent.check_shapes(state=(state, (x.shape[0], *A.shape)))
    return registry.serve(DENSE_OP, DENSE_BODIES, ANYWHERE, body, x, dt, A, B, C, skip, dt_bias, z, state)


def _check(x, dt, A, B, C, skip, dt_bias, z) -> None:
    N, D = A.shape
    rows = x.shape[:-1]
    recurrent.check_shapes(
        x=(x, (*rows, D)), dt=(dt, (*rows, D)), B=(B, (*rows, N)), C=(C, (*rows, N)), skip=(skip, (D,)),
        dt_bias=(dt_bias, (D,)),
    )  # fmt: skip
    if z is not None:
        recurrent.check_shapes(z=(z, x.shape))
