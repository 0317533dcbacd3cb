"""Quantised matmul: the contract, and which body serves it."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from flexjax.kernels import registry
from flexjax.kernels.quantized_matmul import base, cpu, pallas_tpu, xla
from flexjax.kernels.quantized_matmul.packed import Packed

OP = "quantized_matmul"
BODIES = {
    "base": base.quantized_matmul,
    "xla": xla.quantized_matmul,
    "pallas_tpu": pallas_tpu.quantized_matmul,
    "triton_gpu": registry.on_demand("flexjax.kernels.quantized_matmul.triton_gpu", OP, "jax_triton", extra="cuda"),
}
# `base` is the formula to test against: it widens every operand to float32.
ORDER = {"tpu": ("pallas_tpu", "xla"), "gpu": ("triton_gpu", "xla")}
ANYWHERE = ("xla",)
WEIGHT_DTYPES = ("float32", "bfloat16", "float8_e4m3fn", "int8", "int4")


def quantized_matmul(
    x: Float[Array, "T D"],
    values: Shaped[Array, "D F"],
    scale: Float[Array, "*G F"] | None,
    *,
    activation_dtype: str | None = None,
    body: str | None = None,
) -> Float[Array, "T F"]:
    """Rows times a weight in few bits. Equivalent to

        y[t, f] = sum over g of scale[g, f] * (sum over d in group g of x[t, d] * values[d, f])

    with every sum and the result in float32: the products of bfloat16 with bfloat16, float8, int8 or int4 are exact
    there, and scales are applied to sums, never to a rounded weight. A row's result depends on that row alone.

    With `activation_dtype="int8"` each row is rounded first: with m = max |x[t]|, q = round_half_even(x[t] * (127 / m))
    (0 where m < 1e-30). The sums of a group are those of the integers q and values, exact in int32, and
    y[t] = m * float32(1 / 127) * (what stands above, with q for x).

    Args:
      x: bfloat16 or float32.
      values: one of `WEIGHT_DTYPES`.
      scale: float32. None for values that are what they say (float32, bfloat16); [F], one an output channel, for
        int8 and float8; [D / 32, F], one in 32 summed elements, for int4. Bodies may serve other groupings.
      activation_dtype: None keeps x as it is; "int8", for integer values alone.
      body: exactly this one of `BODIES`. By default the environment's, else the first of the platform's order
        that can serve; `flexjax.kernels.bodies_used` tells which did and why.

    Raises:
      ValueError: shapes that do not fit each other, or an option out of range.
      NotImplementedError: no body, or not the one asked for, serves the call.
    """
    _check(x, values, scale, activation_dtype)
    return registry.serve(
        OP, BODIES, ORDER.get(registry.platform(), ANYWHERE), body, x, values, scale, activation_dtype=activation_dtype
    )


def packs(dtype: str) -> bool:
    """Whether the weights of a model in `dtype` are to be packed for `packed_matmul` on this machine; recorded as the
    choice of a body, with the reason where it is no."""

    def packed() -> bool:
        if jax.default_backend() != "cpu":
            raise NotImplementedError("weights are packed for the CPU alone")
        if dtype not in ("float32", "bfloat16"):
            raise NotImplementedError(f"rows are {dtype}; float32 and bfloat16 are built")
        cpu.register()
        return True

    plain = {name: lambda: False for name in BODIES}
    return registry.serve(OP, plain | {"cpu": packed}, ("cpu", "xla"), None)


def packed_matmul(x: Float[Array, "T D"], weight: Packed, **options: Any) -> Float[Array, "T F"]:
    """Rows times a packed weight with what stands around it, as `cpu.packed_matmul` says; recorded as this op's."""
    return registry.serve(OP, {"cpu": cpu.packed_matmul}, ("cpu",), None, x, weight, **options)


def _check(x, values, scale, activation_dtype: str | None) -> None:
    if x.ndim != 2 or values.ndim != 2 or x.shape[1] != values.shape[0]:
        raise ValueError(f"x is [T, D] and values [D, F]; got x {x.shape} and values {values.shape}.")
    D, F = values.shape
    if scale is not None and (
        scale.ndim not in (1, 2) or scale.shape[-1] != F or D % (1 if scale.ndim == 1 else scale.shape[0])
    ):
        raise ValueError(
            f"scale is [F] or [G, F] with G groups that divide D evenly; it is {scale.shape} beside D={D}, F={F}."
        )
    integer = jnp.issubdtype(values.dtype, jnp.integer)
    if integer and scale is None:
        raise ValueError(f"Integer values need a scale; values are {values.dtype} and scale is None.")
    if activation_dtype not in (None, "int8") or (activation_dtype == "int8" and not integer):
        raise ValueError(
            f"activation_dtype is None, or with integer values 'int8'; got {activation_dtype!r} for {values.dtype}."
        )
