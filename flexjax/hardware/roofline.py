"""How long a compiled program takes by the compiler's own cycles, and how long it must take at the least."""

import dataclasses

from flexjax.hardware.chips import Chip
from flexjax.hardware.program import Op, Program
from flexjax.refusal import Refusal

GPU_USABLE = 0.9  # Of a GPU's memory: the rest is the driver's, the context's and fragmentation (vLLM's default).

# Times what one of g chips puts into a collective, what it sends over its links (rings both ways).
SENT = {
    "all-reduce": lambda g: 2 * (g - 1) / g,
    "all-gather": lambda g: g - 1,
    "reduce-scatter": lambda g: (g - 1) / g,
    "all-to-all": lambda g: (g - 1) / g,
    "ragged-all-to-all": lambda g: (g - 1) / g,
    "collective-permute": lambda g: 1,
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one JAX device of a chip can do."""

    hbm_bytes: int  # That a program may use.
    bytes_per_s: float
    flops_per_s: float  # In the dtype that the products are computed in.
    link_bytes_per_s: float | None  # Out of the chip.
    clock_hz: float

    @classmethod
    def of(cls, chip: Chip, dtype: str) -> "Limits":
        """Refusal where the table of chips lacks a figure."""
        if chip.compiler is None or chip.memory_gib is None or chip.memory_gb_per_s is None or chip.clock_ghz is None:
            raise Refusal(f"The limits of {chip.name} need its memory, bandwidth and clock in chips.toml.")
        if dtype not in chip.peak:
            raise Refusal(f"{chip.full_name} has no unit for {dtype}; it has peaks for {', '.join(chip.peak)}.")
        devices = chip.compiler.get("devices", 1)
        return cls(
            hbm_bytes=int(chip.compiler.get("hbm_gib", GPU_USABLE * chip.memory_gib) * 2**30),
            bytes_per_s=chip.memory_gb_per_s * 1e9 / devices,
            flops_per_s=chip.peak[dtype] * 1e12 / devices,
            link_bytes_per_s=chip.link_gb_per_s * 1e9 / 2 / devices if chip.link_gb_per_s else None,
            clock_hz=chip.clock_ghz * 1e9,
        )


def op_seconds(op: Op, limits: Limits) -> float:
    """One turn of an op: the compiler's cycles where it gives any, else the slower of its bytes and its products;
    a collective at the rate of the links, with no latency."""
    if op.sent_bytes:
        rate = limits.link_bytes_per_s
        return op.sent_bytes * SENT[op.opcode](op.group) / rate if rate else 0.0
    if op.cycles is not None:
        return op.cycles / limits.clock_hz
    return max(op.hbm_bytes / limits.bytes_per_s, op.flops / limits.flops_per_s)


def static_seconds(program: Program, limits: Limits) -> float:
    """All ops one after the other; what overlaps on the chip is counted twice, what waits is not counted."""
    return sum(op.turns * op_seconds(op, limits) for op in program.ops)


def least_seconds(program: Program, limits: Limits, needed_bytes: int) -> float:
    """The slower of the products at the chip's peak and the bytes that must be read (`needed_bytes`, or all that the
    program reads where that is less) at its bandwidth."""
    least_bytes = min(needed_bytes, program.hbm_bytes)
    return max(least_bytes / limits.bytes_per_s, program.flops / limits.flops_per_s)


@dataclasses.dataclass(frozen=True)
class Share:
    """The ops of one kind that come from one place in the source, over all their turns."""

    name: str  # "fusion ...D,DO->...O/dot_general"
    turns: int
    seconds: float
    moved_bytes: int  # To and from main memory, or into collectives.
    cycles: int | None  # The compiler's estimate; None where it gives none.


def slowest(program: Program, limits: Limits, count: int) -> list[Share]:
    """What takes most of the static time."""
    kinds: dict[str, list[Op]] = {}
    for op in program.ops:
        kinds.setdefault(f"{op.opcode} {op.label}", []).append(op)
    shares = [
        Share(
            name=name,
            turns=sum(op.turns for op in ops),
            seconds=sum(op.turns * op_seconds(op, limits) for op in ops),
            moved_bytes=sum(op.turns * (op.sent_bytes or op.hbm_bytes) for op in ops),
            cycles=sum(op.turns * (op.cycles or 0) for op in ops) or None,
        )
        for name, ops in kinds.items()
    ]
    return sorted(shares, key=lambda share: -share.seconds)[:count]
