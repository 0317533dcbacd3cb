"""What is timed of top-k, top-p and min-p: every body on the shapes of serving."""

from collections.abc import Iterator

from flexjax.kernels.case import Case, each
from flexjax.kernels.sample_top.api import ANYWHERE, OP, ORDER, sample_top
from flexjax.kernels.sample_top.arg_specs import SERVING_SPECS, ArgSpec


def cases() -> Iterator[Case]:
    return each(SERVING_SPECS, ORDER, ANYWHERE, case)


def case(shape: str, spec: ArgSpec, body: str, calls: int = 1) -> Case:
    """The limit is that of logits read once and compared once, whatever the search for the least one takes."""

    def make():
        logits, *controls = spec.arguments()
        return [logits + 0 for _ in range(calls)], controls

    def step(state, controls):
        least = 0.0
        after = []
        for logits in state:
            logits = logits.at[0, 0].add(least)  # No call before the last one is done.
            least = 0 * sample_top(logits, *controls, body=body)[0]
            after.append(logits)
        after[0] = after[0].at[0, 0].add(least)
        return after

    return Case(OP, shape, body, make, step, spec.read_bytes, len(spec.rows) * spec.V, spec.dtype, calls)
