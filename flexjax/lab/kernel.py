"""A kernel's block sizes by the instructions that its own compiler schedules, for a TPU that need not be here, or by
running it on one that is.

A Pallas kernel tells XLA nothing but a declared cost, which is the same for every block size. libtpu lists, when it is
asked, the bundles of instructions of each kernel and of each of its loops. Those times the turns of the loops are its
cycles, were nothing ever waited for; memory runs beside it, so that the slower of the two counts.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flexjax.hardware import chips, topology
from flexjax.hardware.roofline import Limits
from flexjax.kernels import Kernel, can_serve
from flexjax.lab.blocks import block_sizes
from flexjax.lab.cost import Candidate, Cost, Refused, alternated
from flexjax.lab.listing import Bundles, cycles, read
from flexjax.refusal import Refusal, Unsupported

COMMAND = [sys.executable, "-m", "flexjax.lab.kernel"]  # Compiles what its standard input asks for.
CALLS = 100  # Enqueued at once: one alone would take less time than its dispatch.


def tuning_of(op: str) -> ModuleType:
    """The op's `tuning.py`, as `flexjax.kernels.tuning` describes it; Refusal for an op without one."""
    name = f"flexjax.kernels.{op}.tuning"
    if not (Path(importlib.import_module("flexjax.kernels").__path__[0]) / op / "tuning.py").is_file():
        raise Refusal(f"There is no {name}: the op {op!r} does not exist, or has no block sizes to tune.")
    return importlib.import_module(name)


class CompiledKernel:
    """Static time of one call of an op: what the compiler schedules, never a speed seen. Waiting for memory that
    nothing hides, a kernel's start and what the chip cannot issue as planned are not in it.

    A candidate that is about to be chosen (`effort` above one) must compile for every other shape of the op too. Each
    compiler runs in a process of its own: one that crashes refuses its candidate, and ends nothing else."""

    kind: Literal["compiled"] = "compiled"
    unit = "µs a call"

    def __init__(self, op: str, shape: str, chip: str):
        self._op, self._shape, self._chip = op, shape, chips.find(chip)
        self._tuning = tuning_of(op)
        self._limits = Limits.of(self._chip, self._tuning.case(shape).dtype)
        self._default = self._microseconds({})

    @property
    def least(self) -> float:
        """Of the time, in its unit, what moving the bytes takes alone."""
        return 1e6 * sum(kernel.moved_bytes for kernel in self._kernels({})) / self._limits.bytes_per_s

    def __call__(self, candidate: Candidate, effort: int = 1) -> Cost:
        value = self._microseconds(candidate)
        if effort > 1:
            shapes = (self._tuning.SHAPES | self._tuning.OTHERS).keys() - {self._shape}
            compile_apart(self._op, sorted(shapes), self._chip.name, candidate)
        ratio = value / self._default
        return Cost(ratio, ratio, ratio, value, self._default, None)

    def _kernels(self, candidate: Candidate) -> tuple[Kernel, ...]:
        kind = self._chip.device_kinds[0]
        device = jax.sharding.AbstractDevice(kind, num_cores=1, platform=self._chip.platform)
        mesh = jax.sharding.AbstractMesh((1,), ("tensor",), (AxisType.Auto,), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh), block_sizes(candidate):
            return self._tuning.kernels(self._shape)

    def _microseconds(self, candidate: Candidate) -> float:
        kernels = self._kernels(candidate)
        listed = _listed(self._op, self._shape, self._chip.name, candidate, [kernel.name for kernel in kernels])
        total = 0.0
        for kernel in kernels:
            counted = cycles(listed[kernel.name], kernel.loops)
            if counted is None:
                reason = f"its loops are {listed[kernel.name]}, not those that are known: {kernel.loops}"
                if not candidate:
                    raise Unsupported(
                        f"The cycles of a kernel are those of loops whose turns are known; of {kernel.name} {reason}. "
                        "Search the whole step instead (evaluate='compiled'), or on a chip (measured)."
                    )
                raise Refused(reason)
            total += max(counted / self._limits.clock_hz, kernel.moved_bytes / self._limits.bytes_per_s)
        return 1e6 * total


class MeasuredKernel:
    """Times one call of an op on the TPU that is here, beside the same with its own block sizes."""

    kind: Literal["measured"] = "measured"
    unit = "µs a call"

    def __init__(self, op: str, shape: str, *, rounds: int, dispatches: int):
        self._tuning, self._shape, self._rounds, self._dispatches = tuning_of(op), shape, rounds, dispatches
        self._default = self._compile({})
        self._expected = self._results(self._default)

    def __call__(self, candidate: Candidate, effort: int = 1) -> Cost:
        compiled = self._compile(candidate)
        results = self._results(compiled)
        same = all(a.tobytes() == b.tobytes() for a, b in zip(results, self._expected, strict=True))
        self._state, *self._others = self._tuning.case(self._shape).make()
        sides = (lambda: self._dispatch(self._default), lambda: self._dispatch(compiled))
        return alternated(sides, effort * self._rounds, self._dispatches, same)

    def _compile(self, candidate: Candidate) -> jax.stages.Compiled:
        case = self._tuning.case(self._shape)  # A new one: of a step that JAX has seen it would keep the block sizes.
        try:
            with block_sizes(candidate):
                state, *others = jax.eval_shape(case.make)
                return jax.jit(case.step, donate_argnums=0, keep_unused=True).lower(state, *others).compile()
        except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
            if not candidate:
                raise
            raise Refused(str(error).splitlines()[0][:200]) from error

    def _results(self, compiled: jax.stages.Compiled) -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(compiled(*self._tuning.case(self._shape).make()))]

    def _dispatch(self, compiled: jax.stages.Compiled) -> float:
        began = time.perf_counter()
        for _ in range(CALLS):
            self._state = compiled(self._state, *self._others)
        jax.block_until_ready(self._state)
        return 1e6 * (time.perf_counter() - began) / CALLS


def _listed(op: str, shape: str, chip: str, candidate: Candidate, names: Sequence[str]) -> Mapping[str, Bundles]:
    """Of each kernel what its compiler lists. In a process of its own: libtpu reads where to write its listings once,
    when it starts."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        compile_apart(op, [shape], chip, candidate, flags)
        return {name: read(_listing(Path(folder), name).read_text()) for name in names}


def compile_apart(op: str, shapes: Sequence[str], chip: str, candidate: Candidate, flags: str = "") -> None:
    """Compiles the op on these shapes in another process, whose libtpu has the flags. Refused where that fails, be it
    by a crash; Refusal where it fails with the op's own block sizes."""
    request = dict(op=op, shapes=shapes, chip=chip, candidate=dict(candidate))
    with tempfile.TemporaryDirectory() as folder:  # Where a crash leaves its core.
        done = subprocess.run(
            COMMAND,
            input=json.dumps(request),
            env={**os.environ, "JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": flags},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    if not done.returncode:
        return
    shape = (done.stdout.split() or shapes)[-1]
    if done.returncode < 0:
        reason = f"the compiler ended by {signal.Signals(-done.returncode).name}"
    else:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
    if not candidate:
        raise Refusal(f"The kernel does not compile for {chip}, {shape}: {reason}")
    raise Refused(f"{shape}: {reason}")


def _listing(folder: Path, kernel: str) -> Path:
    found = [
        path for path in sorted(folder.glob(f"*-{kernel}.*-final_bundles.txt")) if "schedule-analysis" not in path.name
    ]
    if len(found) != 1:
        raise RuntimeError(f"libtpu lists a kernel's bundles once; of {kernel} it wrote {[p.name for p in found]}.")
    return found[0]


def _compile(op: str, shapes: list[str], chip: str, candidate: Candidate) -> None:
    """Each in turn, told as it begins; one beside others is passed over where the body refuses it by its own sizes."""
    found = chips.find(chip)
    assert found.compiler is not None
    device = topology.devices(found, "x".join(map(str, found.compiler["host"])))[0]
    mesh = Mesh(np.array([device]), ("tensor",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())

    def on_device(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)

    for shape in shapes:
        print(shape, flush=True)
        case = tuning_of(op).case(shape)
        state, *others = jax.tree.map(on_device, jax.eval_shape(case.make))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            if len(shapes) > 1 and can_serve(case.step, (state, *others)):
                continue
            with block_sizes(candidate):
                # A new one: of a step that JAX has seen it would keep the block sizes.
                step = tuning_of(op).case(shape).step
                lowered = jax.jit(step, donate_argnums=0).lower(state, *others)
        lowered.compile()


if __name__ == "__main__":
    _compile(**json.load(sys.stdin))
