"""A candidate's cost by the compiler's own cycles, for a chip that need not be here."""

from typing import Literal

from flexjax.engine.device import StepProgram
from flexjax.hardware import aot, roofline
from flexjax.lab import Candidate, Cost, Refused
from flexjax.refusal import Refusal
from flexjax.tune import step


class CompiledStep:
    """Static time of the engine's decoding step on a described device: what the compiler expects, never a speed seen.

    It does not see what a flag changes while the program runs (how collectives overlap, how a kernel fares inside):
    what it finds is to be measured on a chip before it is trusted.
    """

    kind: Literal["compiled"] = "compiled"
    unit = "ms a step"

    def __init__(self, program: StepProgram, limits: roofline.Limits, backend: str):
        self._program, self._limits, self._backend = program, limits, backend
        self._default_ms = self._milliseconds({})

    def __call__(self, candidate: Candidate, effort: int = 1) -> Cost:
        value = self._milliseconds(candidate)
        ratio = value / self._default_ms
        return Cost(ratio, ratio, ratio, value, self._default_ms, None)

    def _milliseconds(self, candidate: Candidate) -> float:
        made = step.compiled_with(
            self._program,
            candidate,
            self._backend,
            lambda lowered, options: aot.compile(lowered, self._limits.hbm_bytes, compiler_options=options),
        )
        if isinstance(made, aot.TooLarge):
            missing = f"{made.missing_bytes / 2**30:.2f} GiB more than a device has"
            if not candidate:
                raise Refusal(f"The step needs {missing}: choose more devices, a smaller batch or context.")
            raise Refused(f"needs {missing}")
        return 1e3 * roofline.static_seconds(made.program, self._limits)
