"""The train step compiled for described devices."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from flexjax.families import Family
from flexjax.hardware import aot, roofline
from flexjax.hardware.mesh import MeshConfig
from flexjax.refusal import Refusal
from flexjax.train import LoopConfig, OptimizerConfig, TrainProgram
from flexjax.virtual.target import Target


def _recomputing() -> LoopConfig:
    return LoopConfig(recompute_layers=True)


@dataclasses.dataclass(frozen=True)
class Training:
    """A train step: of all chips together, in one go."""

    batch_size: int = 16  # Sequences a step; divides by data × fsdp of the mesh.
    length: int = 2048  # Tokens of each.
    mesh: MeshConfig | None = None  # None is the chip's training preset.
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    loop: LoopConfig = dataclasses.field(default_factory=_recomputing)


@dataclasses.dataclass(frozen=True)
class TrainReport:
    """The step, compiled; bytes are those of one device."""

    config: Training
    outcome: aot.Compiled | aot.TooLarge
    weights: int
    optimizer: int
    target: Target

    @property
    def name(self) -> str:
        return f"train {self.config.batch_size} × {self.config.length}"

    @property
    def fits(self) -> bool:
        return isinstance(self.outcome, aot.Compiled)

    @property
    def compiled(self) -> aot.Compiled:
        assert isinstance(self.outcome, aot.Compiled)
        return self.outcome

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.config.batch_size * self.config.length

    @property
    def static_seconds(self) -> float:
        return roofline.static_seconds(self.compiled.program, self.target.limits)

    @property
    def least_seconds(self) -> float:
        """Weights and optimiser read and written once, or the products, of the layers computed again too, at peak."""
        arrays = 2 * (self.weights + self.optimizer)
        return roofline.least_seconds(self.compiled.program, self.target.limits, arrays)

    @property
    def slowest(self) -> list[roofline.Share]:
        return roofline.slowest(self.compiled.program, self.target.limits, 5)


def compile_training(family: Family, hf: Mapping[str, Any], config: Training, target: Target) -> TrainReport:
    """The report of one step on the target's mesh; without a compile where weights, gradients and optimiser alone do
    not fit. Refusal where batch or length cannot be shared out evenly."""
    program = train_program(family, hf, config, target)
    lowered = program.lower(config.batch_size, config.length)
    weights, optimizer = aot.device_bytes(program.params), aot.device_bytes(program.optimizer)
    least, available = 2 * weights + optimizer, target.limits.hbm_bytes
    if least > available:
        return TrainReport(config, aot.TooLarge(least, available, 0.0), weights, optimizer, target)
    outcome = aot.compile(lowered, available, compiler_options=target.compiler_options)
    return TrainReport(config, outcome, weights, optimizer, target)


def train_program(family: Family, hf: Mapping[str, Any], config: Training, target: Target) -> TrainProgram:
    build = functools.partial(family.build, family.config_from_hf(dict(hf)), dtype=jnp.float32)
    return TrainProgram(build, config.optimizer, config.loop, target.mesh)


def ways_to_train(family: Family, hf: Mapping[str, Any], report: TrainReport) -> list[str]:
    """More chips, fewer tokens, less kept: each with its figures."""
    outcome, config = report.outcome, report.config
    assert isinstance(outcome, aot.TooLarge)
    ways = [_more_chips(family, hf, report)]
    activations = outcome.needed_bytes - 2 * report.weights - report.optimizer
    room = outcome.available_bytes - 2 * report.weights - report.optimizer
    gib = 2**30
    if activations <= 0:
        ways.append("fewer tokens: weights, gradients and optimiser alone do not fit, whatever the batch")
    else:
        share = max(0.0, room / activations)
        ways.append(
            f"fewer tokens: beside weights, gradients and optimiser the compiler wants {activations / gib:.2f} GiB for "
            f"{report.tokens // report.target.num_devices} tokens a chip, and {room / gib:.2f} are left: about "
            f"{round(share * report.tokens):,} tokens a step"
        )
    ways.append(
        "less kept: layers are computed again already (loop.recompute_layers); a mesh with tensor or sequence splits "
        "activations too"
        if config.loop.recompute_layers
        else "less kept: loop.recompute_layers=True computes layers again and keeps one activation of each"
    )
    return ways


def _more_chips(family: Family, hf: Mapping[str, Any], report: TrainReport) -> str:
    for topology, count in report.target.larger():
        target = dataclasses.replace(report.config, mesh=MeshConfig(fsdp=count))
        try:
            larger = Target.for_training(report.target.chip.name, topology, target.mesh)
            program = train_program(family, hf, target, larger)
        except Refusal:  # There is no such grid, or the model's sizes do not divide by it.
            continue
        needed = 2 * aot.device_bytes(program.params) + aot.device_bytes(program.optimizer)
        if needed <= 0.75 * larger.limits.hbm_bytes:
            return (
                f"more chips: {larger.chip.name} {topology} with fsdp={count} takes {needed / 2**30:.1f} of "
                f"{larger.limits.hbm_bytes / 2**30:.1f} GiB for weights, gradients and optimiser"
            )
    return "more chips: no larger grid leaves a quarter of its memory for activations; choose a chip with more memory"
