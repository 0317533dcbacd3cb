"""What an op's `tuning.py` tells a search for block sizes (`flexjax.tune`), and sizes that differ from chip to chip.

An op's `tuning.py` has

    BLOCKS: tuple[Block, ...]                  constants of its TPU modules, and what to try
    SHAPES: dict[str, ArgSpec]                 calls to try them on
    OTHERS: dict[str, ArgSpec]                 calls that must compile too with the sizes that are chosen
    case(shape) -> Case                        a call of either, to be compiled or timed
    kernels(shape) -> tuple[Kernel, ...]       the kernels of a call of SHAPES, by the block sizes as they stand
"""

import dataclasses
from collections.abc import Mapping

from flexjax.hardware import chips
from flexjax.kernels import registry


@dataclasses.dataclass(frozen=True)
class Block:
    """A constant that is a block size, values to try beside its own, and what it is."""

    name: str
    values: tuple[int, ...]
    note: str
    module: str = "pallas_tpu"


@dataclasses.dataclass(frozen=True)
class Loop:
    """How often a kernel's loop turns in one turn of the loop around it, a mean where that varies, and the loops inside
    it in the order in which they stand in the program."""

    turns: float
    inner: tuple["Loop", ...] = ()


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel as its compiler names it, its loops, and the bytes that it must move, each counted once."""

    name: str
    loops: tuple[Loop, ...]
    moved_bytes: float


def grid(steps: int, *inner: Loop) -> tuple[Loop, ...]:
    """The loop over a grid: none where it has one step."""
    return (Loop(steps, inner),) if steps > 1 else inner


@dataclasses.dataclass(frozen=True)
class ByChip:
    """A block size that is not the same on every chip: `chips` names those of the table that differ."""

    otherwise: int
    chips: Mapping[str, int]

    def __post_init__(self):
        for name in self.chips:
            chips.find(name)


def on_chip(size: int | ByChip) -> int:
    """While tracing: the block size for the chip that the program will run on."""
    if isinstance(size, int):
        return size
    chip = chips.of_device_kind(registry.device_kind())
    return size.otherwise if chip is None else size.chips.get(chip.name, size.otherwise)
