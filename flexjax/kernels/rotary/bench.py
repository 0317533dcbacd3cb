"""What is timed of the rotary cut: every body on the shapes of serving."""

from collections.abc import Iterator

from flexjax.kernels.case import Case, each
from flexjax.kernels.rotary.api import ANYWHERE, OP, ORDER, rotary
from flexjax.kernels.rotary.arg_specs import SERVING_SPECS, ArgSpec


def cases() -> Iterator[Case]:
    return each(SERVING_SPECS, ORDER, ANYWHERE, case)


def case(shape: str, spec: ArgSpec, body: str, calls: int = 8) -> Case:
    def make():
        x, cos, sin = spec.arguments()
        return cos, [x + 0 for _ in range(calls)], sin

    def step(cos, xs, sin):
        for x in xs:
            parts = rotary(x, cos, sin, body=body, **spec.options)
            least = 0 * sum(part[0, 0, 0].astype(cos.dtype) for part in parts)
            cos = cos.at[0, 0].add(least)  # No call before the last one is done.
        return cos

    return Case(OP, shape, body, make, step, spec.moved_bytes, spec.operations, spec.dtype, calls)
