"""SSD: the contract, and which body serves it."""

import functools
import math

from jaxtyping import Array, Bool, Float, Int

from flexjax.kernels import recurrent, registry
from flexjax.kernels.over_axis import copied, over_axis, parts
from flexjax.kernels.ssd import base, pallas_tpu, xla

OP, DENSE_OP = "ssd", "ssd_dense"
BODIES = {
    "base": base.ssd,
    "xla": xla.ssd,
    "pallas_tpu": pallas_tpu.ssd,
    "triton_gpu": registry.on_demand("flexjax.kernels.ssd.triton_gpu", OP, package="jax_triton", extra="cuda"),
}
DENSE_BODIES = {"base": base.ssd_dense, "xla": xla.ssd_dense}
# `base` is the formula to test against, too slow to fall back on.
ORDER = {"tpu": ("pallas_tpu", "xla"), "gpu": ("triton_gpu", "xla")}
ANYWHERE = ("xla",)


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
    body: str | None = None,
) -> tuple[Float[Array, "T D"], Float[Array, "slots N D"]]:
    """The outputs of every row, and the states after the last row of each sequence.

    Rows and states belong together as `flexjax.kernels.recurrent` says. The D channels are H heads of P = D // H, head
    after head; head h reads the B and C of group h // (H // G). Equivalent, for the rows of one sequence, to

        h = zeros if fresh else states[slot]                                        # [N, D]
        for every row t, and every channel d of head m and group g:
            h[:, d] = exp(dt[t, m] * A[m]) * h[:, d] + dt[t, m] * x[t, d] * B[t, g]
            out[t, d] = C[t, g] @ h[:, d] + skip[m] * x[t, d]
        states[slot] = h

    with sums in float32 and the result in x's dtype; states are rounded to their own dtype where the call ends, not
    between rows. Factors of products may be rounded to x's dtype, as published kernels do. Padding rows give zeros and
    write nothing. Under jit, states is updated in place where its buffer is donated. For gradients, use `ssd_dense`.

    dt is the step itself, after bias, softplus and limits. States are `[N, D]` where the published ones are
    `[H, P, N]`: channels fill the lanes of a TPU. skip is the published D; the gate z is left to the norm that follows.

    On a mesh (`jax.set_mesh`) every device computes the channels that it holds (the logical axis "inner").

    Args:
      max_query_len: bound of the rows of any sequence; 1 promises pure decoding.
      body: exactly this one of `BODIES`; by default the environment's, else the first of the platform's order that can
        serve.

    Raises:
      ValueError: shapes that do not fit each other.
      NotImplementedError: the body asked for does not serve the call.

    Reference: Dao & Gu 2024, "Transformers are SSMs", section 6 (the chunked algorithm) and listing 1.
    """
    _check(x, dt, A, B, C, skip)
    recurrent.check_batch(states, query_starts, state_slots, fresh, max_query_len, (B.shape[-1], x.shape[-1]))
    devices, (_, H), (_, G, _) = parts("inner", x.shape[1]), dt.shape, B.shape
    # A head that several devices share is as many narrower heads, and a group of heads as many smaller groups.
    dt, A, skip = (copied(a, a.ndim - 1, devices // math.gcd(H, devices)) for a in (dt, A, skip))
    B, C = (copied(a, 1, devices // math.gcd(G, devices)) for a in (B, C))
    arguments = (x, dt, A, B, C, skip, states, query_starts, state_slots, fresh)
    order = ORDER.get(registry.platform(), ANYWHERE)
    serve = functools.partial(registry.serve, OP, BODIES, order, body, max_query_len=max_query_len)
    return over_axis(serve, "inner", x.shape[1], arguments, (1, 1, 0, 1, 1, 0, 2, None, None, None), (1, 2))


def ssd_dense(
    x: Float[Array, "B T D"],
    dt: Float[Array, "B T H"],
    A: Float[Array, "H"],
    B: Float[Array, "B T G N"],
    C: Float[Array, "B T G N"],
    skip: Float[Array, "H"],
    state: Float[Array, "B N D"] | None = None,
    *,
    body: str | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B N D"]]:
    """The same for sequences of equal length, from `state` (None: zeros): outputs, and the state of each at its end.

    Differentiable; the `xla` body keeps one state for every `xla.BLOCK_ROWS` rows and computes those between again.
    """
    _check(x, dt, A, B, C, skip)
    if state is not None:
        recurrent.check_shapes(state=(state, (x.shape[0], B.shape[-1], x.shape[-1])))
    return registry.serve(DENSE_OP, DENSE_BODIES, ANYWHERE, body, x, dt, A, B, C, skip, state)


def _check(x: Array, dt: Array, A: Array, B: Array, C: Array, skip: Array) -> None:
    rows, D, (H,) = x.shape[:-1], x.shape[-1], A.shape
    G = B.shape[-2]
    if D % H or H % G:
        raise ValueError(
            f"Channels come in equal heads and heads in equal groups: H must divide D, and G H; D={D}, H={H}, G={G}."
        )
    recurrent.check_shapes(dt=(dt, (*rows, H)), B=(B, (*rows, *B.shape[-2:])), C=(C, B.shape), skip=(skip, (H,)))
