"""What is timed of the rotary cut: every body on the shapes of serving."""

from collections.abc import Iterator

from flexjax.kernels.case import Case, each
from flexjax.kernels.rotary.api import ANYWHERE, OP, ORDER, rotary
from flexjax.kernels.rotary.arg_specs import SERVING_SPECS, ArgSpec


def cases() -> Iterator[Case]:
    return each(SERVING_SPECS, ORDER, ANYWHERE, case)


def case(shape: str, spec: ArgSpec, body: str, calls: int = 1) -> Case:
    def make():
        x, cos, sin = spec.arguments()
        return [x + 0 for _ in range(calls)], cos, sin

    def step(state, cos, sin):
        least, after = 0.0, []
        for x in state:
            q, k, v = rotary(x.at[0, 0].add(least), cos, sin, body=body, **spec.options)
            least = 0 * (q[0, 0, 0] + k[0, 0, 0] + v[0, 0, 0]).astype(x.dtype)  # No call before the last one is done.
            after.append(x)
        after[0] = after[0].at[0, 0].add(least)
        return after

    return Case(OP, shape, body, make, step, spec.moved_bytes, spec.operations, spec.dtype, calls)
