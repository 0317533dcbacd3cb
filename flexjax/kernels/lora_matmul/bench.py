"""What is timed of the gathered LoRA matmul: every body on the shapes of serving."""

from collections.abc import Iterator

from flexjax.kernels.case import Case, each
from flexjax.kernels.lora_matmul.api import ANYWHERE, OP, ORDER, lora_matmul
from flexjax.kernels.lora_matmul.arg_specs import SERVING_SPECS, ArgSpec

LAYERS = 4  # Projections of a step, each with adapters of its own, so that they come from memory.


def cases() -> Iterator[Case]:
    return each(SERVING_SPECS, ORDER, ANYWHERE, case)


def case(shape: str, spec: ArgSpec, body: str, calls: int = LAYERS) -> Case:
    def make():
        return spec.arguments()[0], [spec.arguments(seed)[1:] for seed in range(calls)]

    def step(y, layers):
        for x, a, b, rows in layers:
            # No call before the last one is done, and no sum that grows from step to step.
            y = lora_matmul(0.5 * y, x, a, b, rows, body=body)
        return y

    return Case(OP, shape, body, make, step, spec.read_bytes, spec.operations, spec.dtype, calls)
