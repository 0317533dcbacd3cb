"""What a compiled program does, read from its optimised HLO: every op that runs, how often, and its traffic.

XLA's own `cost_analysis` counts the body of a loop once and a fusion with its insides. Here a body counts as
often as its loop turns, and an op counts what it moves between itself and the chip's main memory:

  - an operand or result counts if it lives there; what XLA keeps in on-chip memory (a layout with S(1)) is free
  - of an operand that is only sliced or gathered from, the slices; of a result updated in place, the update
  - a kernel (Pallas, Triton) counts what it declares as its cost estimate, less what lies in on-chip memory
  - a loop whose number of turns the program does not know counts as often as the caller says by its name, else
    once: a dispatch of several decode steps is one
  - of a conditional the cheapest branch: the stages of sampling that nobody asked for cost nothing
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from flexjax.hardware import hlo
from flexjax.hardware.hlo import Buffer, Instruction, Module

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# Names and rearrangements of what is there already.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id opt-barrier "
    "add-dependency domain".split()
)
_FREE_CALLS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked", "Sharding")
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # In place; which operand is the update.
_VIEWS = ("bitcast", "reshape", "transpose")
_ELEMENTWISE = (*_VIEWS, "copy", "convert")  # Within a fusion only the elements that are asked for are computed.


@dataclasses.dataclass(frozen=True)
class Op:
    """An instruction that runs, `turns` times in all; figures are of one turn on one chip."""

    name: str
    opcode: str
    label: str  # Where in the source it comes from, as JAX names it.
    turns: int
    hbm_bytes: int
    flops: int
    cycles: int | None  # The compiler's estimate, where it gives one.
    sent_bytes: int = 0  # Of a collective: what one chip puts in.
    group: int = 1  # Of a collective: how many chips share in it.


@dataclasses.dataclass(frozen=True)
class Program:
    """Every op that one run of a program executes."""

    ops: tuple[Op, ...]

    @property
    def flops(self) -> int:
        return sum(op.turns * op.flops for op in self.ops)

    @property
    def hbm_bytes(self) -> int:
        return sum(op.turns * op.hbm_bytes for op in self.ops)

    @property
    def collectives(self) -> tuple[Op, ...]:
        return tuple(op for op in self.ops if op.opcode in COLLECTIVES)

    @property
    def sent_bytes(self) -> int:
        return sum(op.turns * op.sent_bytes for op in self.ops)


def read(text: str, turns: Mapping[str, int] = MappingProxyType({})) -> Program:
    """The program of `Compiled.as_text()`; `turns` of loops that it does not know, by the `jax.named_scope` around."""
    reader = _Reader(hlo.parse(text), turns)
    return Program(tuple(reader.run(reader.module.entry, 1)))


class _Reader:
    def __init__(self, module: Module, turns: Mapping[str, int]):
        self.module, self.turns = module, turns
        # Many fusions call the same computation.
        self.read_of = functools.cache(self._read_of)
        self.written_of = functools.cache(self._written_of)
        self.flops_of = functools.cache(self._flops_of)

    def run(self, computation: str, turns: int) -> Iterator[Op]:
        """The ops of a computation that runs `turns` times."""
        for i in self.module.computations[computation].values():
            if i.opcode == "while":
                condition, body = i.called("condition"), i.called("body")
                count = turns * self._turns(computation, i)
                yield from self.run(body, count)
                yield from self.run(condition, count)
            elif i.opcode == "conditional":
                branches = [list(self.run(name, turns)) for name in i.branches]
                yield from min(branches, key=lambda ops: sum(op.turns * (op.cycles or op.hbm_bytes) for op in ops))
            elif i.opcode in ("call", "async-start"):
                yield from self.run(i.called("to_apply" if i.opcode == "call" else "calls"), turns)
            elif i.opcode not in _FREE and not i.opcode.endswith(("-done", "-update")):
                op = self._op(computation, i, turns)
                if op.hbm_bytes or op.flops or op.cycles or op.sent_bytes:
                    yield op

    def _op(self, computation: str, i: Instruction, turns: int) -> Op:
        opcode = i.opcode.removesuffix("-start")
        sources = self.module.sources(computation, i)
        if i.target.startswith(_FREE_CALLS):
            return Op(i.name, opcode, "", turns, 0, 0, None)
        declared = i.setting("bytes_accessed") if opcode == "custom-call" else None
        if declared is not None:
            buffers = [buffer for each in (*sources, i) for buffer in each.buffers]
            free = sum(buffer.nbytes - buffer.hbm_bytes for buffer in buffers)
            traffic = max(0, declared - free)
            return Op(i.name, "kernel", i.kernel, turns, traffic, i.setting("flops") or 0, None)
        traffic, cycles = self._traffic(i, sources), i.setting("estimated_cycles")
        if opcode in COLLECTIVES:
            sent = sum(s.nbytes for s in sources)
            return Op(i.name, opcode, i.label, turns, traffic, 0, cycles, sent, i.group)
        return Op(i.name, opcode, i.label, turns, traffic, self._flops(i, sources), cycles)

    def _traffic(self, i: Instruction, sources: Sequence[Instruction]) -> int:
        """Bytes to and from main memory."""
        called = i.called("calls") if i.opcode in ("fusion", "fusion-start") else None
        results = _results(i, sum(len(s.buffers) for s in sources))
        updates = self.written_of(called) if called else (_update_bytes(i, sources),) * len(results)
        total = 0
        for buffer, update in zip(results, updates, strict=True):
            total += min(buffer.hbm_bytes, buffer.nbytes if update is None else update)
        for n, source in enumerate(sources):
            if len(source.buffers) == 1:  # The parts of a tuple are read by whoever takes them out.
                taken = self.read_of(called, n) if called else _taken_bytes(i, n, source.nbytes)
                total += min(source.buffers[0].hbm_bytes, taken)
        return total

    def _read_of(self, computation: str, number: int) -> int:
        """Bytes that a fused computation takes of its parameter `number`."""
        return self._used(self.module.computations[computation], self.module.parameter(computation, number))

    def _used(self, body: Mapping[str, Instruction], i: Instruction) -> int:
        used = i.nbytes if i.is_root else 0
        for user in body.values():
            for n, operand in enumerate(user.operands):
                if operand != i.name:
                    continue
                if user.opcode in _ELEMENTWISE or (user.opcode == "fusion" and self.passes(user.called("calls"), n)):
                    used += -(-self._used(body, user) * i.nbytes // user.nbytes)
                elif user.opcode == "fusion":
                    used += self.read_of(user.called("calls"), n)
                else:
                    used += _taken_bytes(user, n, i.nbytes)
        return min(i.nbytes, used)

    def passes(self, computation: str, number: int) -> bool:
        """Whether a fused computation gives its parameter `number` back, element by element."""
        i = self.module.root(computation)
        while i.opcode in _ELEMENTWISE:
            (i,) = self.module.sources(computation, i)
        return i == self.module.parameter(computation, number)

    def _written_of(self, computation: str) -> tuple[int | None, ...]:
        """For each result of a fused computation the bytes of its update, None where it is written whole."""
        root = self.module.root(computation)
        if root.opcode == "fusion":
            return self.written_of(root.called("calls"))
        if root.opcode == "tuple":
            return tuple(self._updated(computation, result) for result in self.module.sources(computation, root))
        return (self._updated(computation, root),) if len(root.buffers) == 1 else (None,) * len(root.buffers)

    def _updated(self, computation: str, i: Instruction) -> int | None:
        while i.opcode in _VIEWS:
            (i,) = self.module.sources(computation, i)
        if i.opcode == "fusion" and len(i.buffers) == 1:
            return self.written_of(i.called("calls"))[0]
        return _update_bytes(i, self.module.sources(computation, i))

    def _flops_of(self, computation: str) -> int:
        instructions = self.module.computations[computation].values()
        return sum(self._flops(i, self.module.sources(computation, i)) for i in instructions)

    def _flops(self, i: Instruction, sources: Sequence[Instruction]) -> int:
        """Of products alone: what else a model computes is nothing beside them."""
        if i.opcode in ("fusion", "fusion-start"):
            return self.flops_of(i.called("calls"))
        if i.opcode == "dot":
            return _dot_flops(i, sources[0].buffers[0])
        if i.opcode == "convolution":
            return _convolution_flops(i, sources[0].buffers[0], sources[1].buffers[0])
        return 0

    def _turns(self, computation: str, loop: Instruction) -> int:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = loop.called("condition")
        root = self.module.root(condition)
        if root.opcode == "compare" and "direction=LT" in root.attributes:
            counter, bound = self.module.sources(condition, root)
            last = _constant(bound)
            if last is not None:
                first, step = self._counted(computation, loop, counter)
                return -(-(last - first) // step)
        name = re.search(r'op_name="([^"]*)"', loop.attributes)
        scope = name[1].split("/")[-2:-1] if name else []
        return next((self.turns[part] for part in scope if part in self.turns), 1)

    def _counted(self, computation: str, loop: Instruction, counter: Instruction) -> tuple[int, int]:
        """Where a loop's counter begins, and what each turn adds: two in products that XLA has cut in windows and
        unrolled. 0 and 1 where that is not written down."""
        place = re.search(r"index=(\d+)", counter.attributes)
        (state,) = self.module.sources(computation, loop)
        body = loop.called("body")
        root = self.module.root(body)
        if place is None or root.opcode != "tuple" or state.opcode != "tuple":
            return 0, 1
        begins = self.module.sources(computation, state)[int(place[1])]
        while begins.opcode in _VIEWS or begins.opcode == "copy":
            (begins,) = self.module.sources(computation, begins)
        added = self.module.sources(body, root)[int(place[1])]
        steps = [_constant(i) for i in self.module.sources(body, added)] if added.opcode == "add" else []
        return _constant(begins) or 0, next((step for step in steps if step), 1)


def _constant(i: Instruction) -> int | None:
    value = re.match(r"\((\d+)\)", i.attributes)
    return int(value[1]) if i.opcode == "constant" and value else None


def _results(i: Instruction, num_operands: int) -> tuple[Buffer, ...]:
    """What an instruction makes. One that only starts gives its operands back beside it, and most a token."""
    if i.opcode == "copy-start":
        return i.buffers[:1]
    if i.opcode in ("fusion-start", "slice-start", "dynamic-slice-start"):
        return i.buffers[num_operands:-1]
    return i.buffers[len(i.buffers) // 2 :] if i.opcode.endswith("-start") else i.buffers


def _taken_bytes(user: Instruction, n: int, whole: int) -> int:
    """Bytes that an instruction takes of its operand `n`, of `whole`."""
    opcode = user.opcode.removesuffix("-start")
    if n == 0 and opcode in _SLICES:
        return sum(b.nbytes for b in _results(user, 1))
    return 0 if n == 0 and opcode in _UPDATES else whole


def _update_bytes(i: Instruction, sources: Sequence[Instruction]) -> int | None:
    """Bytes written by an update in place; None for what is none."""
    return sources[_UPDATES[i.opcode]].nbytes if i.opcode in _UPDATES and len(i.buffers) == 1 else None


def _dot_flops(i: Instruction, lhs: Buffer) -> int:
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)
    dims = [lhs.dims[int(d)] for d in summed[1].split(",") if d] if summed else []
    return 2 * i.buffers[0].elements * math.prod(dims)


def _convolution_flops(i: Instruction, lhs: Buffer, kernel: Buffer) -> int:
    """Of the places that lie within the input: XLA for TPU writes a product over several axes as a window that
    lies mostly outside."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    assert labels
    window = re.search(r"window=\{([^}]*)\}", i.attributes)
    settings = {k: v.split("x") for k, v in (part.split("=") for part in window[1].split())} if window else {}
    result = i.buffers[0]
    products = result.elements * kernel.dims[labels[2].index("i")]
    for n, size in enumerate(settings.get("size", ())):
        stride, spread, step = (
            int(settings[k][n]) if k in settings else 1 for k in ("stride", "lhs_dilate", "rhs_dilate")
        )
        before = int(settings["pad"][n].split("_")[0]) if "pad" in settings else 0
        length, count = lhs.dims[labels[1].index(str(n))], result.dims[labels[3].index(str(n))]
        places = (o * stride + k * step - before for o in range(count) for k in range(int(size)))
        products = products * sum(0 <= at <= (length - 1) * spread and at % spread == 0 for at in places) // count
    return 2 * products
