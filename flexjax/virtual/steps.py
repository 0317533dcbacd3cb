"""Every step that the engine would run, compiled for described devices."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from flexjax.engine.step import StepProgram, StepShape, compiler_options
from flexjax.hardware import aot, roofline
from flexjax.hardware.program import Op
from flexjax.virtual.target import Target


@dataclasses.dataclass(frozen=True)
class StepReport:
    """One step, compiled; bytes are those of one device."""

    shape: StepShape
    context: int  # Tokens of each sequence, all live.
    outcome: aot.Compiled | aot.TooLarge
    weights: int
    cache: int
    target: Target

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
        return roofline.least_seconds(self.compiled.program, self.target.limits, self.weights + self.cache)

    @property
    def kernel_seconds(self) -> float:
        """Of the static time, that of attention over the pages, which grows with the context."""
        ops = [op for op in self.compiled.program.ops if op.opcode == "kernel"]
        return sum(op.turns * roofline.op_seconds(op, self.target.limits) for op in ops)

    @property
    def slowest(self) -> list[tuple[Op, float]]:
        return roofline.slowest(self.compiled.program, self.target.limits, 5)

    def tokens_per_s(self, seconds: float) -> float:
        """Of all replicas together: what a decode step makes, or the rows that a mixed step takes in."""
        return self.target.num_replicas * self.shape.num_rows / seconds


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
    options = compiler_options(program.config, target.chip.platform)
    weights, cache = aot.device_bytes(program.weights), aot.device_bytes(program.cache)

    def report(shape: StepShape, outcome: aot.Compiled | aot.TooLarge) -> StepReport:
        made = StepReport(shape, context, outcome, weights, cache, target)
        done(made)
        return made

    def compiled(shape: StepShape, lowered) -> StepReport:
        return report(shape, aot.compile(lowered, target.limits.hbm_bytes, compiler_options=options))

    first = max(shapes)
    reports = {}
    leading = aot.compile_keeping(
        program.lower(first, free_layouts=target.chip.platform == "tpu"),
        target.limits.hbm_bytes,
        compiler_options=options,
    )
    outcome, executable = leading
    reports[first] = report(first, outcome)
    if executable is not None:
        program.keep_layouts(executable)
    rest = [shape for shape in shapes if shape != first]
    lowered = [program.lower(shape) for shape in rest]
    with ThreadPoolExecutor(2) as pool:  # XLA works outside the interpreter's lock.
        for shape, made in zip(rest, pool.map(compiled, rest, lowered), strict=True):
            reports[shape] = made
    return [reports[shape] for shape in shapes]
