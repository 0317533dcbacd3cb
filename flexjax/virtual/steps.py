"""Every step that the engine would run, compiled for described devices."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from flexjax.engine.device import LAYOUT_BACKENDS, StepProgram, StepShape, compiler_options
from flexjax.hardware import aot, roofline
from flexjax.kernels.ragged_paged_attention import OP as ATTENTION
from flexjax.kernels.ragged_paged_attention import xla
from flexjax.virtual.target import Target


@dataclasses.dataclass(frozen=True)
class StepReport:
    """One step, compiled; bytes are those of one device."""

    shape: StepShape
    context: int  # Tokens of each sequence, all live.
    outcome: aot.Compiled | aot.TooLarge
    weights: int
    cache: int
    live_cache: int  # Of the cache, what this step's sequences hold.
    target: Target

    @property
    def name(self) -> str:
        return f"decode {self.shape.num_seqs}" if self.shape.decodes_only else f"mixed {self.shape.num_rows}"

    @property
    def fits(self) -> bool:
        return isinstance(self.outcome, aot.Compiled)

    @property
    def compiled(self) -> aot.Compiled:
        assert isinstance(self.outcome, aot.Compiled)
        return self.outcome

    @property
    def static_seconds(self) -> float:
        """Of one decode step, or one mixed step."""
        return roofline.static_seconds(self.compiled.program, self.target.limits)

    @property
    def least_seconds(self) -> float:
        """Of the bytes, or of the products as they are made: many rows times int4 are two on TPU."""
        return roofline.least_seconds(self.compiled.program, self.target.limits, self.weights + self.live_cache)

    @property
    def attention_seconds(self) -> float:
        """Of the static time, that of attention over the pages, which grows with the context."""
        ops = [op for op in self.compiled.program.ops if (op.opcode, op.label) == ("kernel", ATTENTION)]
        return sum(op.turns * roofline.op_seconds(op, self.target.limits) for op in ops)

    @property
    def slowest(self) -> list[roofline.Share]:
        return roofline.slowest(self.compiled.program, self.target.limits, 5)

    def tokens_per_s(self, seconds: float) -> float:
        """Of all replicas together: what a decode step makes, or the rows that a mixed step takes in."""
        return self.target.num_replicas * self.shape.num_rows / seconds


def _turns(shape: StepShape, context: int, page_size: int) -> dict[str, int]:
    """Of the loops of plain-JAX attention, with every sequence at full context."""
    block = max(1, xla.BLOCK_TOKENS // page_size) * page_size
    return {
        xla.PAGE_LOOP: -(-context // block),
        xla.ROW_LOOP: max(shape.num_seqs, -(-shape.num_rows // xla.BLOCK_ROWS)),
    }


def compile_steps(
    program: StepProgram,
    target: Target,
    context: int,
    shapes: Sequence[StepShape] | None = None,
    done: Callable[[StepReport], None] = lambda report: None,
) -> list[StepReport]:
    """Reports of the shapes (all of the engine's by default), in order.

    The largest decode step is compiled first and chooses how the weights lie in memory; the others take them so.
    """
    shapes = list(program.shapes if shapes is None else shapes)
    platform = target.chip.platform
    options = target.compiler_options or compiler_options(program.config, platform)
    weights, cache = aot.device_bytes(program.weights), aot.device_bytes(program.cache)

    def report(shape: StepShape, outcome: aot.Compiled | aot.TooLarge) -> StepReport:
        live = round(cache * min(1, shape.num_seqs / program.config.max_num_seqs))
        made = StepReport(shape, context, outcome, weights, cache, live, target)
        done(made)
        return made

    def compiled(shape: StepShape, lowered) -> StepReport:
        settings = {"turns": _turns(shape, context, program.config.page_size), "compiler_options": options}
        return report(shape, aot.compile(lowered, target.limits.hbm_bytes, **settings))

    first = max(shapes)
    reports = {}
    free = platform in LAYOUT_BACKENDS
    outcome, executable = aot.compile_keeping(
        program.lower(first, free_layouts=free),
        target.limits.hbm_bytes,
        turns=_turns(first, context, program.config.page_size),
        compiler_options=options,
    )
    reports[first] = report(first, outcome)
    if free and executable is not None:
        program.keep_layouts(executable)
    rest = [shape for shape in shapes if shape != first]
    lowered = [program.lower(shape) for shape in rest]
    with ThreadPoolExecutor(2) as pool:  # XLA works outside the interpreter's lock.
        for shape, made in zip(rest, pool.map(compiled, rest, lowered), strict=True):
            reports[shape] = made
    return [reports[shape] for shape in shapes]
