"""Mixed precision in training: bfloat16 products with weights, float32 everything else.

Matrix units (AMX, tensor cores, MXU) multiply bfloat16 and add in float32. Rounding only the operands of the products
with weights, and leaving the weights, the residual stream, norms, attention and loss in float32, trains as well as
float32 and costs no cast elsewhere.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Precision = Literal["float32", "bfloat16"]


def with_precision[M: nnx.Module](model: M, precision: Precision) -> M:
    """The same model, over the same parameters, whose products of rows and float32 weights round their operands so."""
    model = nnx.merge(*nnx.split(model))
    modules: list[Any] = [module for _, module in nnx.iter_modules(model)]
    for module in modules:
        if hasattr(module, "precision"):
            module.precision = precision
    return model


def product(
    x: Float[Array, "*T D"], w: Float[Array, "..."], precision: Precision, *, transposed: bool = False
) -> Float[Array, "*T O"]:
    """`x @ w` for w `[D, O]`, or with `transposed` `x @ w.T` for w `[O, D]`: float32. With "bfloat16", float32 operands
    are rounded to it, and in the backward pass the gradient with them."""
    if precision == "bfloat16" and x.dtype == w.dtype == jnp.float32:
        return _rounded(x, w, transposed)
    return _einsum("...D,OD->...O" if transposed else "...D,DO->...O", x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded(x: Float[Array, "*T D"], w: Array, transposed: bool) -> Float[Array, "*T O"]:
    return _forward(x, w, transposed)[0]


def _forward(x: Array, w: Array, transposed: bool) -> Any:
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return _einsum("...D,OD->...O" if transposed else "...D,DO->...O", x, w), (x, w)


def _backward(transposed: bool, residuals: tuple[Array, Array], grad: Float[Array, "*T O"]) -> tuple[Array, Array]:
    x, w = residuals
    g = grad.astype(jnp.bfloat16)
    dx = _einsum("...O,OD->...D" if transposed else "...O,DO->...D", g, w)
    rows = tuple(range(x.ndim - 1))
    y, z = (g, x) if transposed else (x, g)
    return dx, jax.lax.dot_general(y, z, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)


_rounded.defvjp(_forward, _backward)


def _einsum(spec: str, x: Array, y: Array) -> Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
