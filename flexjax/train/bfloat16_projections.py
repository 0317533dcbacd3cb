"""Mixed precision as a function transform: bfloat16 projections, float32 everything else.

Matrix units (AMX, tensor cores, MXU) multiply bfloat16 and add in float32. Rounding only the operands of
the products with weights, and leaving the weights, the residual stream, norms, attention and loss in
float32, trains as well as float32 and costs no cast elsewhere.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jaxtyping import Array, Float


def with_bfloat16_projections[F: Callable[..., Any]](function: F) -> F:
    """`function` with the operands of its float32 projections rounded to bfloat16, forwards and backwards.

    A projection is an array's last axis times a matrix; those in loops (scan), layers computed again (checkpoint)
    and `shard_map` are found too. In while, cond and custom rules they keep their precision.
    """

    @functools.wraps(function)
    def wrapped(*args):
        closed, out_shape = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = _evaluate(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out_shape), outputs)

    return wrapped  # type: ignore[return-value]


def _evaluate(closed: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))
    for eqn in jaxpr.eqns:
        inputs = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
        with eqn.ctx.manager:
            outputs = _evaluate_one(eqn, inputs)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]


def _evaluate_one(eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
    params = eqn.params
    match eqn.primitive.name:
        case "dot_general" if _is_projection(eqn, inputs):
            return [_project(*inputs, _contracted(eqn)[1] == (1,))]
        case "jit":
            return _evaluate(params["jaxpr"], inputs)
        case "scan" | "remat2":
            inner = _closed(params["jaxpr"])
            rounded = jax.make_jaxpr(lambda *args: _evaluate(inner, args))(*inner.in_avals)
            assert not rounded.consts
            body = rounded if isinstance(params["jaxpr"], ClosedJaxpr) else rounded.jaxpr
            return eqn.primitive.bind(*inputs, **{**params, "jaxpr": body})
        case "shard_map":
            inner = _closed(params["jaxpr"])
            return jax.shard_map(
                lambda *args: _evaluate(inner, args),
                mesh=params["mesh"],
                in_specs=params["in_specs"],
                out_specs=list(params["out_specs"]),
                axis_names=params["newly_manual_axes"],
                check_vma=params["check_vma"],
            )(*inputs)
        case _:
            outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(params))
            return outputs if eqn.primitive.multiple_results else [outputs]


def _closed(jaxpr: Jaxpr | ClosedJaxpr) -> ClosedJaxpr:
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def _contracted(eqn: JaxprEqn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    (lhs, rhs), _ = eqn.params["dimension_numbers"]
    return tuple(lhs), tuple(rhs)


def _is_projection(eqn: JaxprEqn, inputs: list[Any]) -> bool:
    """Whether a float32 matrix multiplies the last axis of a float32 array."""
    x, w = inputs
    return x.dtype == w.dtype == jnp.float32 and w.ndim == 2 and _contracted(eqn)[0] == (x.ndim - 1,)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project(x: Float[Array, "*T D"], w: Array, transposed: bool) -> Float[Array, "*T O"]:
    """`x @ w` for w `[D, O]`, or `x @ w.T` for w `[O, D]`."""
    return _project_fwd(x, w, transposed)[0]


def _project_fwd(x: Array, w: Array, transposed: bool):
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return _einsum("...D,OD->...O" if transposed else "...D,DO->...O", x, w), (x, w)


def _project_bwd(transposed: bool, residuals: tuple[Array, Array], grad: Float[Array, "*T O"]):
    x, w = residuals
    g = grad.astype(jnp.bfloat16)
    dx = _einsum("...O,OD->...D" if transposed else "...O,DO->...D", g, w)
    rows = tuple(range(x.ndim - 1))
    y, z = (g, x) if transposed else (x, g)
    return dx, jax.lax.dot_general(y, z, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)


_project.defvjp(_project_fwd, _project_bwd)


def _einsum(spec: str, x: Array, y: Array) -> Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
