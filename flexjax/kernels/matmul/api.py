"""Quantised matmul: the contract, and which body serves it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from flexjax.kernels import registry
from flexjax.kernels.matmul import base, cpu, pallas_tpu, xla
from flexjax.kernels.matmul.over_mesh import over_mesh
from flexjax.kernels.matmul.packed import Packed

OP = "matmul"
BODIES = {
    "base": base.matmul,
    "xla": xla.matmul,
    "pallas_tpu": pallas_tpu.matmul,
    "triton_gpu": registry.on_demand("flexjax.kernels.matmul.triton_gpu", OP, "jax_triton", extra="cuda"),
}
# `base` is the formula to test against: it widens every operand to float32.
ORDER = {"tpu": ("pallas_tpu", "xla"), "gpu": ("triton_gpu", "xla")}
ANYWHERE = ("xla",)
WEIGHT_DTYPES = ("float32", "bfloat16", "float8_e4m3fn", "int8", "int4")


def matmul(
    x: Float[Array, "T D"],
    values: Shaped[Array, "*L D F"],
    scale: Float[Array, "..."] | None,
    *,
    layer: Int[Array, ""] | None = None,
    axes: tuple[str, str] | None = None,
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

    On a mesh (`jax.set_mesh`) with `axes`, every device multiplies with its part of the weight, and parts of D are
    summed.

    Args:
      x: bfloat16 or float32.
      values: one of `WEIGHT_DTYPES`.
      scale: float32. None for values that are what they say (float32, bfloat16); [F], one an output channel, for
        int8 and float8; [D / 32, F], one in 32 summed elements, for int4. Bodies may serve other groupings.
      layer: of values [L, D, F] and scales [L, …], stacked in a loop over layers, which one to multiply with. Kernels
        for TPU read it where it lies: sliced out first, it would be copied.
      axes: the logical axes of D and F, which say how the weight is split on a mesh.
      activation_dtype: None keeps x as it is; "int8", for integer values alone.
      body: exactly this one of `BODIES`. By default the environment's, else the first of the platform's order
        that can serve; `flexjax.kernels.bodies_used` tells which did and why.

    Raises:
      ValueError: shapes that do not fit each other, or an option out of range.
      NotImplementedError: no body, or not the one asked for, serves the call.
    """
    _check(x, values, scale, layer, activation_dtype, axes)
    serve = functools.partial(registry.serve, OP, BODIES, ORDER.get(registry.platform(), ANYWHERE), body)

    def multiply(x: Array, values: Array, scale: Array | None, layer: Array | None) -> Array:
        return serve(x, values, scale, layer=layer, activation_dtype=activation_dtype)

    return multiply(x, values, scale, layer) if axes is None else over_mesh(multiply, axes, x, values, scale, layer)


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


def _check(x, values, scale, layer, activation_dtype: str | None, axes: tuple[str, str] | None) -> None:
    stack = values.shape[:-2]
    if x.ndim != 2 or values.ndim < 2 or x.shape[1] != values.shape[-2] or len(stack) != (layer is not None):
        raise ValueError(
            f"x is [T, D] and values [D, F], or [L, D, F] with a layer; got x {x.shape} and values {values.shape} "
            f"with{'out' if layer is None else ''} a layer."
        )
    D, F = values.shape[-2:]
    if scale is not None:
        *groups, channels = scale.shape[len(stack) :] or (0,)
        if scale.shape[: len(stack)] != stack or channels != F or len(groups) > 1 or D % (groups or [1])[0]:
            raise ValueError(
                f"scale is [F] or [G, F] with G groups that divide D evenly, after the axis of layers where there is "
                f"one; it is {scale.shape} beside values {values.shape}: D={D}, F={F}."
            )
    integer = jnp.issubdtype(values.dtype, jnp.integer)
    if integer and scale is None:
        raise ValueError(f"Integer values need a scale; values are {values.dtype} and scale is None.")
    if activation_dtype not in (None, "int8") or (activation_dtype == "int8" and not integer):
        raise ValueError(
            f"activation_dtype is None, or with integer values 'int8'; got {activation_dtype!r} for {values.dtype}."
        )
    if activation_dtype is not None and axes is not None:
        raise NotImplementedError(
            "Rows are rounded by all of D, of which a device may have a part: no axes with int8 rows."
        )
