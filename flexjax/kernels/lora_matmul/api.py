"""Gathered LoRA matmul: the contract, and which body serves it."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from flexjax.kernels import registry
from flexjax.kernels.lora_matmul import base, pallas_tpu, xla
from flexjax.kernels.lora_matmul.rows import AdapterRows
from flexjax.kernels.over_axis import over_axis, parts, sum_over_axis

OP = "lora_matmul"
BODIES = {
    "base": base.lora_matmul,
    "xla": xla.lora_matmul,
    "pallas_tpu": pallas_tpu.lora_matmul,
    "triton_gpu": registry.on_demand("flexjax.kernels.lora_matmul.triton_gpu", OP, package="jax_triton", extra="cuda"),
}
# `base` is the formula to test against, too slow to fall back on.
ORDER = {"tpu": ("pallas_tpu", "xla"), "gpu": ("triton_gpu", "xla")}
ANYWHERE = ("xla",)


def lora_matmul(
    y: Float[Array, "T F"],
    x: Float[Array, "T D"],
    a: Float[Array, "A R D"],
    b: Float[Array, "A R F"],
    rows: AdapterRows,
    *,
    axes: tuple[str | None, str | None] = (None, None),
    body: str | None = None,
) -> Float[Array, "T F"]:
    """The rows of a projection, each with its own adapter's change added. Equivalent, for every row t, to

        i = rows.adapter[t]
        h = (a[i] @ x[t]).astype(x.dtype)
        y[t] + h @ b[i]                   # or y[t] alone where i < 0

    with sums and result in float32. `h` is rounded because the published layers round between their two matrices.

    On a mesh (`jax.set_mesh`) every device computes the outputs that it holds, or where those are whole, what the
    inputs that it holds add, of which `h` is then rounded before devices are summed.

    Args:
      y: float32, what the projection itself gives.
      x: the rows that went into it, in the adapters' dtype (bfloat16 or float32).
      a, b: all adapters side by side: PEFT's `lora_A.weight`, and `lora_B.weight` transposed, times alpha / R. Ranks
        below R are filled with zeros.
      rows: the adapter of each row, made once a step by `AdapterRows.of`.
      axes: logical axes of the projection's inputs D and outputs F, by which a mesh splits a and b; None: whole.
      body: exactly this one of `BODIES`. By default the environment's, else the first of the platform's order
        that can serve; `flexjax.kernels.bodies_used` tells which did and why.

    Raises:
      ValueError: shapes or dtypes that do not fit each other.
      NotImplementedError: no body, or not the one asked for, serves the call.
    """
    _check(y, x, a, b, rows)
    serve = functools.partial(registry.serve, OP, BODIES, ORDER.get(registry.platform(), ANYWHERE), body)
    (inputs, D), (outputs, F) = (axes[0], x.shape[1]), (axes[1], y.shape[1])
    if parts(inputs, D) > 1 and parts(outputs, F) == 1:
        # Added where it is summed, so that XLA can sum it over devices together with the projection itself.
        return y + sum_over_axis(serve, inputs, D, (jnp.zeros_like(y), x, a, b, rows), (None, 1, 2, None, None))
    return over_axis(serve, outputs, F, (y, x, a, b, rows), (1, None, None, 2, None), 1)


def _check(y, x, a, b, rows: AdapterRows) -> None:
    if (y.ndim, x.ndim, a.ndim, b.ndim) != (2, 2, 3, 3):
        raise ValueError(
            f"y is [T, F], x [T, D], a [A, R, D] and b [A, R, F]; got {y.shape}, {x.shape}, {a.shape} and {b.shape}."
        )
    (T, D), (A, R, _), F = x.shape, a.shape, y.shape[1]
    wanted = {"y": (y, (T, F)), "a": (a, (A, R, D)), "b": (b, (A, R, F)), "rows.slot": (rows.slot, (T,))}
    for name, (array, shape) in wanted.items():
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape} beside x {x.shape} and R={R}; it has {array.shape}.")
    if not x.dtype == a.dtype == b.dtype or y.dtype != "float32":
        raise ValueError(
            f"x, a and b have one dtype and y is float32; got {x.dtype}, {a.dtype}, {b.dtype} and {y.dtype}."
        )
