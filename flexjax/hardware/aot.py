"""Programs compiled for devices that may not be there, and what their compiler says of them."""

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax

from flexjax.hardware import program
from flexjax.hardware.program import Program


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes on each device while a program runs."""

    arguments: int
    results: int  # That are not written over an argument.
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        return self.arguments + self.results + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Compiled:
    footprint: Footprint
    program: Program
    seconds: float  # That compiling took.


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """The compiler refused: the program does not fit a device."""

    needed_bytes: int
    available_bytes: int
    seconds: float

    @property
    def missing_bytes(self) -> int:
        return self.needed_bytes - self.available_bytes


def compile(
    lowered: jax.stages.Lowered, available_bytes: int, *, turns: Mapping[str, int] | None = None, **options: Any
) -> Compiled | TooLarge:
    """The program compiled, or by how much it does not fit into `available_bytes` of a device.

    `turns` of the loops that the program does not know, as `program.read` takes them; `options` as
    `Lowered.compile` does.
    """
    return compile_keeping(lowered, available_bytes, turns=turns, **options)[0]


def compile_keeping(
    lowered: jax.stages.Lowered, available_bytes: int, *, turns: Mapping[str, int] | None = None, **options: Any
) -> tuple[Compiled | TooLarge, jax.stages.Compiled | None]:
    """`compile`, and the compiled program itself, None where its compiler refused it."""
    started = time.perf_counter()
    try:
        compiled = lowered.compile(**options)
    except jax.errors.JaxRuntimeError as error:
        too_large = _too_large(str(error), time.perf_counter() - started)
        if too_large is None:
            raise
        return too_large, None
    seconds = time.perf_counter() - started
    footprint = footprint_of(compiled)
    if footprint.total > available_bytes:  # A GPU's compiler does not refuse.
        return TooLarge(footprint.total, available_bytes, seconds), compiled
    text = compiled.as_text()
    assert text is not None
    return Compiled(footprint, program.read(text, turns or {}), seconds), compiled


def footprint_of(compiled: jax.stages.Compiled) -> Footprint:
    memory = compiled.memory_analysis()
    assert memory is not None
    return Footprint(
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
    )


def device_bytes(abstract: Any) -> int:
    """Bytes on each device of a pytree of arrays or `ShapeDtypeStruct`s, by their shardings."""
    return sum(_shard_bytes(x) for x in jax.tree.leaves(abstract))


def _shard_bytes(x: Any) -> int:
    shape = x.sharding.shard_shape(x.shape) if getattr(x, "sharding", None) is not None else x.shape
    return -(-math.prod(shape) * _bits(x.dtype) // 8)


def _bits(dtype: Any) -> int:
    """Of one element as a chip stores it: NumPy gives a byte to an int4, two of which share one."""
    found = re.fullmatch(r"u?int([24])", dtype.name)
    return int(found[1]) if found else 8 * dtype.itemsize


_UNIT = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"(\d+(?:\.\d+)?)([KMGT]?)"
# What libtpu says, before it has laid out the memory and after.
_REFUSALS = (
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"Used {_SIZE}(?:B|iB)? of {_SIZE} hbm. Exceeded hbm capacity by {_SIZE}"),
)


def _too_large(message: str, seconds: float) -> TooLarge | None:
    for refusal in _REFUSALS:
        if found := refusal.search(message):
            groups = found.groups()
            sizes = [int(float(n) * _UNIT[u]) for n, u in zip(groups[::2], groups[1::2], strict=True)]
            needed, available = sizes[0], sizes[1]
            return TooLarge(available + sizes[2] if len(sizes) > 2 else needed, available, seconds)
    return None
