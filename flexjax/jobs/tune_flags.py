"""Searches compiler flags and kernel block sizes for the decoding step, measured on a chip or compiled for one."""

import csv
import dataclasses
import datetime
import shlex
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from flexjax import families, files, shipped
from flexjax.engine import EngineConfig
from flexjax.hardware import chips, compile_cache, xla_flags
from flexjax.lab import CompiledKernel, Cost, Evaluator, MeasuredKernel, tuning_of
from flexjax.progress import Progress
from flexjax.records import JobRecord, Value, environment, to_json
from flexjax.refusal import Refusal
from flexjax.tune import (
    AGAIN,
    CompiledStep,
    Factor,
    Finding,
    MeasuredStep,
    SearchConfig,
    Trial,
    decode_program,
    describe,
    figure,
    search,
    set_file,
)
from flexjax.virtual import Target, abstract_model, program_for

VERSION = "1"  # Of what the columns mean.


@dataclasses.dataclass(frozen=True)
class Config:
    set_name: str  # "<chip>/<purpose>" of the set file that comes out.
    # The decoding step on the chip here, or by the compiler for `chip`; or a kernel alone: by the instructions that are
    # scheduled for `chip`, or where none is named on the TPU here.
    evaluate: Literal["measured", "compiled", "kernel"] = "measured"
    model: str = ""  # Of a step: model directory; of a compiled search a published size by name (llama3-8b) is enough.
    kernel: str = ""  # Of a kernel: "<op>/<shape>", of the op's tuning.py.
    # (name, values beside the default, what it does): flags without dashes, block sizes as <op>.<module>.<CONSTANT>. Of
    # a kernel empty: those of its tuning.py.
    factors: tuple[tuple[str, tuple[bool | int | float | str, ...], str], ...] = ()
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    context: int = 128  # Tokens that each sequence of the batch holds.
    rounds: int = 9  # Measured: of each candidate beside the defaults.
    dispatches: int = 11  # Measured: of each side in a round.
    chip: str = ""  # Compiled or kernel: a chip of the table, of kernel a TPU;
    topology: str = ""  # of compiled also how many of it, as a grid: 2x4.
    search: SearchConfig = SearchConfig()

    def __post_init__(self):
        of_kernel, compiled = self.evaluate == "kernel", self.evaluate == "compiled"
        if bool(self.topology) != compiled or (bool(self.chip) != compiled and not of_kernel):
            raise Refusal(
                "A compiled search names chip and topology, a measured one neither, and one of a kernel at most the "
                f"chip; got {self.chip!r} and {self.topology!r}."
            )
        if of_kernel != bool(self.kernel) or of_kernel == bool(self.model) or of_kernel == bool(self.factors):
            raise Refusal(
                "A search for a step names model and factors, one for a kernel the kernel alone; got model="
                f"{self.model!r}, {len(self.factors)} factors and kernel={self.kernel!r}."
            )
        if of_kernel:
            op, _, shape = self.kernel.partition("/")
            if shape not in (shapes := tuning_of(op).SHAPES):
                raise Refusal(f"{op} is tuned on the shapes {', '.join(shapes)}; got {shape!r}.")
        if self.context < 1 or self.rounds < 1 or self.dispatches < 1:
            raise Refusal("context, rounds and dispatches must be at least 1.")
        xla_flags.variable_of(self.set_name)  # Its chip is known.


def run(config: Config, workdir: Path) -> int:
    """Writes `<purpose>.txt` (the set, with its evidence) and `trials.csv`; 0 also where nothing pays."""
    console = Console(highlight=False)
    record = JobRecord.begin("tune_flags", VERSION, config, workdir)
    if config.evaluate == "measured":
        compile_cache.enable()  # What is compiled for chips that are not here cannot be loaded again.
    factors = [Factor(*factor) for factor in config.factors] or _blocks(config.kernel)
    with console.status("loading and compiling the defaults"):
        evaluator, where = {"measured": _measured, "compiled": _compiled, "kernel": _kernel}[config.evaluate](config)
    note = f"{evaluator.kind} on {where}; below 1 is faster than the defaults"
    console.print(note, style="dim", markup=False, soft_wrap=True)
    with (workdir / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["phase", "candidate", *(f.name for f in dataclasses.fields(Cost)), "reason"])

        def report(trial: Trial) -> None:
            progress.done(f"{trial.phase:8} {describe(trial.candidate)}  {figure(trial)}")
            figures = dataclasses.astuple(trial.cost) if trial.cost else ("",) * len(dataclasses.fields(Cost))
            writer.writerow([trial.phase, describe(trial.candidate), *figures, trial.reason])
            file.flush()  # A flag may take the compiler, and with it this process, down.

        most = sum(len(factor.values) for factor in factors) + config.search.trials + AGAIN
        finding = None
        with Progress(most, at_most=True) as progress:
            finding = search(evaluator, factors, config.search, report)
    if finding is None:  # Ended early: a set of half the trials would be none.
        console.print(f"The trials so far: {workdir / 'trials.csv'}", markup=False, soft_wrap=True)
        progress.close()
    assert finding is not None
    today = datetime.date.today().isoformat()
    path = workdir / f"{config.set_name.rpartition('/')[2]}.txt"
    files.write_text(path, set_file(finding, factors, evaluator, what=_what(config), where=where, date=today))
    xla_flags.parse(path.read_text(), str(path))  # The launcher must be able to read it.
    _print(console, config, finding, evaluator, path)
    record.keep(_columns(config, finding, evaluator), kind=evaluator.kind)
    return 0


def _columns(config: Config, finding: Finding, evaluator: Evaluator) -> dict[str, Value]:
    """What was found against the defaults; where nothing pays, the defaults."""
    cost = finding.cost
    tried = [trial.cost for trial in finding.trials if trial.cost]
    unit = {"ms a step": "step_ms", "µs a call": "call_us"}[evaluator.unit]
    return {
        "model.name": Path(config.model).name or None,
        "technique.kernel": config.kernel or None,
        "technique.flags_json": to_json(finding.best),
        "metrics.trials": len(finding.trials),
        f"metrics.default_{unit}": tried[0].default_value if tried else None,
        f"metrics.tuned_{unit}": cost.value if cost else None,
        "metrics.tuned_ratio": cost.ratio if cost else 1.0,
        "metrics.tuned_ratio_low": cost.low if cost else None,
        "metrics.tuned_ratio_high": cost.high if cost else None,
    }


def _what(config: Config) -> str:
    if config.evaluate == "kernel":
        op, _, shape = config.kernel.partition("/")
        return f"The kernels of {op}, {shape}"
    engine = config.engine
    cache = f" with an {engine.cache_dtype} cache" if engine.cache_dtype not in (None, engine.dtype) else ""
    return (
        f"The decoding step of {Path(config.model).name}, {engine.dtype}{cache}, {engine.max_num_seqs} sequences of "
        f"{config.context} tokens"
    )


def _blocks(kernel: str) -> list[Factor]:
    op = kernel.partition("/")[0]
    return [Factor(f"{op}.{block.module}.{block.name}", block.values, block.note) for block in tuning_of(op).BLOCKS]


def _measured(config: Config) -> tuple[Evaluator, str]:
    directory = shipped.model(config.model)
    family, _ = families.family_of_directory(directory)
    model = family.load(directory, dtype=jnp.dtype(config.engine.dtype))
    backend = jax.default_backend()
    program = decode_program(model, config.engine, context=config.context, backend=backend)
    evaluator = MeasuredStep(model, program, context=config.context, rounds=config.rounds, dispatches=config.dispatches)
    machine = environment.cpu() if backend == "cpu" else {}
    running = chips.detect()
    kind = machine.get("system.cpu.model") or running.device_kind
    return evaluator, f"{running.units} × {kind}, jaxlib {environment.version('jaxlib')}"


def _compiled(config: Config) -> tuple[Evaluator, str]:
    target = Target.of(config.chip, config.topology, config.engine.mesh, config.engine.dtype)
    model = abstract_model(*families.family_of(config.model), config.engine, target.chip.platform)
    program = program_for(model, config.engine, target, config.engine.max_num_seqs, config.context)
    compiler = "libtpu" if target.chip.platform == "tpu" else "jaxlib"
    where = f"{target}, {compiler} {environment.version(compiler)}"
    return CompiledStep(program, target.limits, target.chip.platform), where


def _kernel(config: Config) -> tuple[Evaluator, str]:
    op, _, shape = config.kernel.partition("/")
    chip = chips.find(config.chip) if config.chip else None
    platform = chip.platform if chip else jax.default_backend()
    if platform != "tpu":
        raise Refusal(
            f"The block sizes are those of TPU kernels; {chip.full_name if chip else 'what JAX runs on'} is "
            f"{platform}. Name a TPU (chip=) to search by its compiler, or run on one."
        )
    if chip is None:
        measured = MeasuredKernel(op, shape, rounds=config.rounds, dispatches=config.dispatches)
        return measured, f"one {chips.detect().device_kind}, jaxlib {environment.version('jaxlib')}"
    compiled = CompiledKernel(op, shape, chip.name)
    where = f"one {chip.full_name}, libtpu {environment.version('libtpu')}; moving its bytes alone takes"
    return compiled, f"{where} {compiled.least:.4g} µs"


def _print(console: Console, config: Config, finding: Finding, evaluator: Evaluator, path: Path) -> None:
    if finding.cost is None:
        console.print(f"Nothing pays: no setting saves {100 * config.search.least_gain:g} % in nearly every round.")
    else:
        table = Table(title=f"What pays ({evaluator.kind})")
        for name in ("setting", "value"):
            table.add_column(name)
        for name, value in finding.best.items():
            table.add_row(name, str(value))
        console.print(table)
        cost = finding.cost
        console.print(
            f"{cost.default_value:.4g} → {cost.value:.4g} {evaluator.unit}: {cost.ratio:.3f} of the time "
            f"({cost.low:.3f}–{cost.high:.3f})"
        )
    console.print(f"The set and its evidence: {path}", markup=False, soft_wrap=True)
    console.print(
        f"To keep it: cp {shlex.quote(str(path))} xla_flags/{config.set_name}.txt", markup=False, soft_wrap=True
    )
    if finding.cost is not None and config.evaluate != "kernel":  # Block sizes stand in their kernel's module.
        console.print(f"To use it:  --config.xla_flags={config.set_name}", markup=False, soft_wrap=True)
