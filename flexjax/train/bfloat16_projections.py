"""Mixed precision as a function transform: bfloat16 projections, float32 everything else.

Matrix units (AMX, tensor cores, MXU) multiply bfloat16 and add in float32. Rounding only the operands of
the products with weights, and leaving the weights, the residual stream, norms, attention and loss in
float32, trains as well as float32 and costs no cast elsewhere.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jaxtyping import Array, BFloat16, Float


def with_bfloat16_projections[F: Callable[..., Any]](function: F) -> F:
    """`function` with the operands of its float32 projections rounded to bfloat16, forwards and backwards.

    A projection is an array's last axis times a matrix. Those inside control flow (scan, while, cond) and
    custom rules keep their precision.
    """

    @functools.wraps(function)
    def wrapped(*args):
        closed, out_shape = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out_shape), outputs)

    return wrapped  # type: ignore[return-value]


def _evaluate(jaxpr: Jaxpr, consts: list[Any], args: list[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for eqn in jaxpr.eqns:
        inputs = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
        if eqn.primitive.name == "jit":
            inner = eqn.params["jaxpr"]
            outputs = _evaluate(inner.jaxpr, inner.consts, inputs)
        elif _is_projection(eqn, inputs):
            outputs = [_project_rows(*inputs, transposed=_contracted(eqn)[1] == (1,))]
        else:
            with eqn.ctx.manager:
                outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
            outputs = outputs if eqn.primitive.multiple_results else [outputs]
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]


def _contracted(eqn: JaxprEqn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    (lhs, rhs), _ = eqn.params["dimension_numbers"]
    return tuple(lhs), tuple(rhs)


def _is_projection(eqn: JaxprEqn, inputs: list[Any]) -> bool:
    """Whether a float32 matrix multiplies the last axis of a float32 array."""
    if eqn.primitive.name != "dot_general":
        return False
    x, w = inputs
    return x.dtype == w.dtype == jnp.float32 and w.ndim == 2 and _contracted(eqn)[0] == (x.ndim - 1,)


def _project_rows(x: Float[Array, "*T D"], w: Array, transposed: bool) -> Float[Array, "*T O"]:
    rows: Any = _project(x.reshape(-1, x.shape[-1]), w, transposed)
    return rows.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project(x: Float[Array, "T D"], w: Array, transposed: bool) -> Float[Array, "T O"]:
    """`x @ w` for w `[D, O]`, or `x @ w.T` for w `[O, D]`."""
    return _project_fwd(x, w, transposed)[0]


def _project_fwd(x: Array, w: Array, transposed: bool):
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return _einsum("TD,OD->TO" if transposed else "TD,DO->TO", x, w), (x, w)


def _project_bwd(transposed: bool, residuals: tuple[Array, Array], grad: Float[Array, "T O"]):
    x, w = residuals
    g = grad.astype(jnp.bfloat16)
    dx = _einsum("TO,OD->TD" if transposed else "TO,DO->TD", g, w)
    dw = _einsum("DT,TO->DO", _transpose(x), g)
    # Without the barrier XLA folds this transpose into the product as well.
    return dx, jax.lax.optimization_barrier(dw).T if transposed else dw


_project.defvjp(_project_fwd, _project_bwd)


def _transpose(x: BFloat16[Array, "T D"]) -> BFloat16[Array, "D T"]:
    """x.T as the product of the identity with x, which is exact.

    XLA's CPU backend folds a plain transpose into the product that follows, and then contracts the leading
    axes of both operands in a loop that is 5 times slower than the matrix unit, identity included.
    """
    if jax.default_backend() != "cpu":
        return x.T
    return jnp.einsum("DE,TE->DT", jnp.eye(x.shape[1], dtype=x.dtype), x)


def _einsum(spec: str, x: Array, y: Array) -> Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
