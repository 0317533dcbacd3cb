"""Optimised HLO as `Compiled.as_text()` writes it: computations of instructions, and where their results lie."""

import dataclasses
import math
import re

from flexjax.refusal import Refusal

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One array that an instruction gives."""

    dtype: str
    dims: tuple[int, ...]
    space: int  # 0 is the chip's main memory.

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        bits = _BITS.get(self.dtype)
        if bits is None:  # The first number of a name such as bf16, s4, f8e4m3fn.
            bits = int(re.findall(r"\d+", self.dtype)[0])
        return -(-self.elements * bits // 8)

    @property
    def hbm_bytes(self) -> int:
        return self.nbytes if self.space == 0 else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    buffers: tuple[Buffer, ...]  # One, or the elements of a tuple.
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def nbytes(self) -> int:
        return sum(b.nbytes for b in self.buffers)

    @property
    def target(self) -> str:
        """Of a custom call."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def branches(self) -> list[str]:
        """The computations of a conditional."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if listed:
            return _OPERAND.findall(listed[1])
        return [self.called("true_computation"), self.called("false_computation")]

    @property
    def group(self) -> int:
        """How many chips share in a collective."""
        if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\](?:\s*\{([^}]*)\})?", self.attributes):
            sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", meshed[1])}
            axes = re.findall(r"'(\w+)'", meshed[2]) if meshed[2] else list(sizes)
            return math.prod(sizes[axis] for axis in axes)
        if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", self.attributes):
            return int(iota[1])
        listed = re.search(r"replica_groups=\{\{([\d,]*)\}", self.attributes)
        return len(listed[1].split(",")) if listed else 2  # A permutation names pairs.

    @property
    def label(self) -> str:
        """Where in the source it comes from: the end of JAX's name for it, without the loops around it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        loops = ("eval_jaxpr", "body", "while", "closed_call")
        parts = [part for part in found[1].split("/") if part not in loops] if found else []
        return "/".join(parts[-2:]) or self.name

    @property
    def kernel(self) -> str:
        """The name of a custom call that runs a kernel: its own, or where it has none that of the op around it."""
        own, found = self.name.split(".")[0], re.search(r'op_name="([^"]*)"', self.attributes)
        *scopes, primitive = found[1].split("/") if found else [""]
        return scopes[-1] if primitive == own and scopes else own

    def called(self, role: str) -> str:
        """The computation that an attribute names: body, condition, calls, …"""
        found = re.search(rf"\b{role}=%?([\w.\-]+)", self.attributes)
        assert found, f"{self.opcode} {self.name} names no {role}"
        return found[1]

    def setting(self, name: str) -> int | None:
        """An integer of the backend's own notes, such as `estimated_cycles`."""
        quote = r'(?:"|\\22)'  # Escaped where the notes stand within a string.
        found = re.search(rf'{quote}{name}{quote}: ?"?(\d+)', self.attributes)
        return int(found[1]) if found else None


@dataclasses.dataclass(frozen=True)
class Module:
    """Every computation by name, each its instructions by name, in the order they run."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def sources(self, computation: str, i: Instruction) -> list[Instruction]:
        """What gives the operands of an instruction."""
        body = self.computations[computation]
        return [body[name] for name in i.operands]

    def root(self, computation: str) -> Instruction:
        return next(i for i in self.computations[computation].values() if i.is_root)

    def parameter(self, computation: str, number: int) -> Instruction:
        return next(
            i
            for i in self.computations[computation].values()
            if i.opcode == "parameter" and i.attributes.startswith(f"({number})")
        )


def parse(text: str) -> Module:
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := _LINE.match(line):
            current[found[2]] = _instruction(found[2], found[3], is_root=bool(found[1]))
    if not entry:
        raise Refusal("Optimised HLO has an ENTRY computation; this text has none. Pass Compiled.as_text().")
    return Module(computations, entry)


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside, attributes = rest[len(opcode) + 1 : close], rest[close + 1 :]
    buffers = tuple(
        Buffer(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), _space(layout))
        for dtype, dims, layout in _ARRAY.findall(shape)
    )
    if opcode in ("parameter", "constant"):  # Their number or value stands where operands stand.
        return Instruction(name, opcode, buffers, (), f"({inside}){attributes}", is_root)
    return Instruction(name, opcode, buffers, tuple(_OPERAND.findall(inside)), attributes, is_root)


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise Refusal(f"A parenthesis does not close in this line of HLO: {text[:120]}")


def _space(layout: str) -> int:
    found = re.search(r"S\((\d+)\)", layout)
    return int(found[1]) if found else 0
