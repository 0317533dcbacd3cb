"""What is checked and timed of the GPU kernels, and in which order: the most wanted first."""

import dataclasses
import fnmatch
import importlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from flexjax import kernels
from flexjax.lab.peers import peers

HOME = Path(kernels.__file__).parent
BODY = "triton_gpu"
PARTS = ("goals", "values", "others")


@dataclasses.dataclass(frozen=True)
class Goal:
    """The least share of the bytes that the GPU copies, or of the bfloat16 products that it makes."""

    of: Literal["copies", "products"]
    share: float

    def __str__(self) -> str:
        return f"≥ {self.share:.0%} of {self.of}"


# By patterns of op/shape.
GOALS = {
    "ragged_paged_attention/llama3_8b_decode_*": Goal("copies", 0.8),
    "ragged_paged_attention/llama3_8b_prefill_*": Goal("products", 0.6),
    "matmul/llama3_8b_int[48]_decode_*": Goal("copies", 0.8),
}


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing to do in one call: the times of some bodies on a shape, in turn, or the values of one."""

    what: Literal["times", "value"]
    op: str
    shape: str
    bodies: tuple[str, ...]  # Of a value the body, and the one whose value is right.

    @property
    def goal(self) -> Goal | None:
        return next((goal for it, goal in GOALS.items() if fnmatch.fnmatch(f"{self.op}/{self.shape}", it)), None)


def gpu_ops() -> list[str]:
    """Ops with a GPU body, those that have a goal first."""
    named = sorted(path.parent.name for path in HOME.glob(f"*/{BODY}.py"))
    return sorted(named, key=lambda op: not any(pattern.startswith(f"{op}/") for pattern in GOALS))


def specs(op: str, which: Literal["ARG_SPECS", "SERVING_SPECS"]) -> dict[str, Any]:
    """The op's named shapes."""
    return getattr(importlib.import_module(f"flexjax.kernels.{op}.arg_specs"), which)


def plan(ops: Sequence[str], parts: Sequence[str] = PARTS) -> list[Item]:
    """First, op by op in turn, the times and values of shapes that have a goal; then values of all the shapes that are
    checked; then times and values of the other shapes of serving."""
    by_op = [[item for shape in specs(op, "SERVING_SPECS") for item in _serving(op, shape)] for op in ops]
    wanted = [[item for item in items if item.goal] for items in by_op]
    made = {
        "goals": [item for turn in itertools.zip_longest(*wanted) for item in turn if item],
        "values": [Item("value", op, shape, (BODY, "base")) for op in ops for shape in specs(op, "ARG_SPECS")],
        "others": [item for items in by_op for item in items if not item.goal],
    }
    return [item for part in PARTS if part in parts for item in made[part]]


def _serving(op: str, shape: str) -> list[Item]:
    """The formula would need too much memory for a shape of serving: there XLA's body, itself checked, says what is
    right."""
    bodies = (BODY, "xla", *peers(op, specs(op, "SERVING_SPECS")[shape]))
    return [Item("times", op, shape, bodies), Item("value", op, shape, (BODY, "xla"))]
