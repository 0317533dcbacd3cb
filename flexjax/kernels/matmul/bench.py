"""What is timed of the quantised matmul: every body on the named shapes, and on a CPU the packed product."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from flexjax.kernels import registry
from flexjax.kernels.case import Case
from flexjax.kernels.matmul.api import ANYWHERE, OP, ORDER, matmul, packed_matmul
from flexjax.kernels.matmul.arg_specs import ARG_SPECS, SERVING_SPECS, ArgSpec
from flexjax.kernels.matmul.packed import pack

LAYERS = 8  # Weights of their own in a step, so that they come from where a model's would.


def cases() -> Iterator[Case]:
    platform = registry.platform()
    for shape, spec in {**SERVING_SPECS, **ARG_SPECS}.items():
        bodies = [*ORDER.get(platform, ANYWHERE)]
        if platform == "cpu" and "float8" not in spec.weight_dtype:
            bodies.append("cpu")
        for body in bodies:
            yield case(shape, spec, body)


def case(shape: str, spec: ArgSpec, body: str, calls: int = LAYERS) -> Case:
    def make():
        x, values, scale = spec.arguments()
        weight = pack(values, scale) if body == "cpu" else (values, scale)
        return x, [jax.tree.map(jnp.copy, weight) for _ in range(calls)]

    def step(x, weights):
        for weight in weights:
            y = (
                packed_matmul(x, weight, **spec.options)
                if body == "cpu"
                else matmul(x, *weight, body=body, **spec.options)
            )
            x = x.at[0, 0].add((0 * y[0, 0]).astype(x.dtype))  # No call before the last one is done.
        return x

    return Case(OP, shape, body, make, step, spec.weight_bytes, spec.operations, spec.dtype, calls)
