"""What is timed of the SSD: every body on the shapes of serving."""

from collections.abc import Iterator

from flexjax.kernels import recurrent, registry
from flexjax.kernels.case import Case
from flexjax.kernels.ssd.api import ANYWHERE, OP, ORDER, ssd
from flexjax.kernels.ssd.arg_specs import SERVING_SPECS, ArgSpec

LAYERS = 2  # Calls of a step.


def cases() -> Iterator[Case]:
    """One for each shape and body of this platform."""
    for shape, spec in SERVING_SPECS.items():
        for body in ORDER.get(registry.platform(), ANYWHERE):
            yield case(shape, spec, body)


def case(shape: str, spec: ArgSpec, body: str, calls: int = LAYERS) -> Case:
    return recurrent.case(OP, ssd, shape, spec, body, calls)
