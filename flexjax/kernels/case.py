"""What an op's `bench.py` gives to be timed: `cases() -> Iterator[Case]`."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from flexjax.kernels import registry


@dataclasses.dataclass(frozen=True)
class Case:
    """A body of an op on a named shape, as a step whose result is its next argument.

    Its limit is the larger of two times: `moved_bytes` at the machine's bandwidth, and `operations` at its peak in
    `dtype`. Both are what the op must do, each byte counted once, whatever the body does; for one of the `calls` of a
    step.
    """

    op: str
    shape: str
    body: str
    make: Callable[[], tuple[Any, ...]]  # Its first state, which is donated, and what else it takes.
    step: Callable[..., Any]
    moved_bytes: float
    operations: float  # Multiplications and additions.
    dtype: str
    calls: int = 1


def each(
    specs: Mapping[str, Any], order: Mapping[str, Sequence[str]], anywhere: Sequence[str], case: Callable[..., Case]
) -> Iterator[Case]:
    """`case(shape, spec, body)` of each shape and body of this platform."""
    for shape, spec in specs.items():
        for body in order.get(registry.platform(), anywhere):
            yield case(shape, spec, body)


def can_serve(step: Callable[..., Any], arguments: tuple[Any, ...]) -> str | None:
    """None, or the reason why the step's body refuses such arguments; nothing is compiled."""
    try:
        jax.eval_shape(step, *arguments)
    except NotImplementedError as error:
        return str(error)
    return None
