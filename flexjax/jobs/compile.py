"""Compiles the steps of serving and training for chips that need not be here: fits or not, bytes, static time."""

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from flexjax import families, files, kernels
from flexjax.config import to_config_dict
from flexjax.engine import EngineConfig
from flexjax.families import Family
from flexjax.hardware import aot, xla_flags
from flexjax.model import CausalLM
from flexjax.progress import Progress
from flexjax.records import Record, environment, store, to_json
from flexjax.refusal import Refusal
from flexjax.virtual import (
    Budget,
    StepReport,
    Target,
    Training,
    abstract_model,
    compile_steps,
    compile_training,
    program_for,
    report,
    ways_to_fit,
    ways_to_train,
)

VERSION = "1"  # Of what the columns mean.
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Config:
    model: str = "llama3-8b"  # A model directory, or a published size by name; no weights are read.
    chip: str = "v5e"  # v4, v5e, v5p, v6e, 7x, a100, h100, h200 or b200.
    topology: str = "2x4"  # Chips as a grid: 2x4 (v5e, v6e), 2x2x1 (v4, v5p, 7x); of GPUs 8, or 2x8 in two hosts.
    # Its max_num_seqs contexts of max_model_len tokens are all held at once; mesh None takes the chip's preset.
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    steps: Literal["all", "decode", "largest", "none"] = "all"  # Of the engine's; largest is one decode step.
    search: bool = True  # For the longest context and the largest batch, confirmed by a compile.
    train: Training | None = None  # The train step too, on a mesh of its own; None leaves it out.

    def __post_init__(self):
        if self.steps == "none" and self.train is None:
            raise Refusal("With steps='none' there is nothing to compile but a train step; give train=….")


def run(config: Config, workdir: Path) -> int:
    """0 where everything fits, else 1."""
    store.prepare(workdir / "results.parquet")
    console = Console()
    family, hf = families.family_of(config.model)
    kernels.forget()
    progress = Progress(0 if config.train is None else 1, at_most=True)
    fits, rows = _serving(console, family, hf, config, workdir, progress) if config.steps != "none" else (True, [])
    if config.train is not None and not progress.fault:
        with progress:
            trains, row = _training(console, family, hf, config, config.train, progress)
            fits, rows = fits and trains, [*rows, row]
    _print_bodies(console)
    store.write_json(workdir / "record.json", rows)
    store.append(workdir / "results.parquet", rows)
    console.print(f"Records {'and picture ' if (workdir / 'fits.png').is_file() else ''}in {workdir}.", style="dim")
    progress.close()
    return 0 if fits else 1


def _serving(
    console: Console, family: Family, hf: Mapping[str, Any], config: Config, workdir: Path, progress: Progress
) -> tuple[bool, list[Record]]:
    """Whether every step of the engine fits, and their rows."""
    target = Target.of(config.chip, config.topology, config.engine.mesh, config.engine.dtype)
    model = abstract_model(family, hf, config.engine, target.chip.platform)
    batch, context = config.engine.max_num_seqs, config.engine.max_model_len or model.config.max_position
    name = Path(config.model).name
    bits = _bits(config.engine)
    title = f"{name}, {bits}, {batch} × {context} tokens on {target} (compiled)"
    budget = Budget.of(model, config.engine, target)
    if budget.missing(batch, context) > 0:
        _explain(console, model, config, target, budget, batch, context, budget.missing(batch, context))
        return False, [report.refusal(target, budget, batch, context, _common(config, target, fits=False))]

    program = program_for(model, config.engine, target, batch, context)
    shapes = [shape for shape in program.shapes if shape.decodes_only or config.steps == "all"]
    shapes = [max(shapes)] if config.steps == "largest" else shapes
    reports: list[StepReport] = []
    found: dict[str, Any] = {}
    widest: StepReport | None = None

    def tell(made: StepReport) -> None:
        reports.append(made)
        progress.done(f"{made.name}, {'fits' if made.fits else 'does not fit'}")

    progress.total += len(shapes) + 2 * config.search
    with progress:
        compile_steps(program, target, context, shapes, tell)
        if config.search and (most := max(reports, key=lambda r: r.shape)).fits:
            found, widest = _search(model, config, target, _left(budget, most), batch, context, progress)
    reports.sort(key=lambda r: shapes.index(r.shape))
    largest = max(reports, key=lambda r: r.shape)
    pictured = [*reports, widest] if widest is not None and widest.shape > largest.shape else reports
    report.print_report(console, reports, title)
    _print_found(console, found, batch, context)
    if largest.fits:
        figure = report.plot(pictured, _left(budget, largest), f"{name} on {config.chip} {config.topology}, {bits}")
        with files.replacing(workdir / "fits.png", "wb") as file:
            figure.savefig(file, format="png", dpi=150, facecolor="white")
    unfit = [r for r in reports if not r.fits]
    if unfit:
        worst = max(r.outcome.missing_bytes for r in unfit if isinstance(r.outcome, aot.TooLarge))
        _explain(console, model, config, target, budget, batch, context, worst)
    return not unfit, report.records(reports, {**_common(config, target, fits=not unfit), **found})


def _left(budget: Budget, largest: StepReport) -> Budget:
    """The budget, with what the largest step was found to need beside weights and cache."""
    footprint = largest.compiled.footprint
    return dataclasses.replace(budget, reserve=footprint.temporaries + footprint.code)


def _training(
    console: Console, family: Family, hf: Mapping[str, Any], config: Config, train: Training, progress: Progress
) -> tuple[bool, Record]:
    """Whether the train step fits, and its row."""
    target = Target.for_training(config.chip, config.topology, train.mesh)
    made = compile_training(family, hf, train, target)
    progress.done(f"train step, {'fits' if made.fits else 'does not fit'}")
    console.print()
    again = "layers computed again" if train.loop.recompute_layers else "all activations kept"
    name = Path(config.model).name
    report.print_training(console, made, f"{name}, {train.loop.precision} products, {again}, on {target} (compiled)")
    if not made.fits:
        console.print(f"{name} on {target}:", style="bold red", highlight=False)
        for way in ways_to_train(family, hf, made):
            console.print(f"  • {way}", highlight=False)
    common = {**_common(config, target, fits=made.fits), "model.weight_data_types": "float32"}
    return made.fits, report.training_record(made, common)


def _bits(engine: EngineConfig) -> str:
    """bfloat16; or what of it is held in fewer."""
    weights, cache = engine.weight_dtype or engine.dtype, engine.cache_dtype or engine.dtype
    return weights if weights == cache else f"{weights} weights, {cache} cache"


def _print_bodies(console: Console) -> None:
    """Which body of a kernel was compiled, where the first one could not be."""
    for op, choices in kernels.bodies_used().items():
        for choice in choices:
            for name, why in choice.passed_over:
                console.print(f"{op}: {choice.body} in place of {name}, {why}.", style="yellow", highlight=False)


def _search(
    model: CausalLM, config: Config, target: Target, budget: Budget, batch: int, context: int, progress: Progress
) -> tuple[dict[str, Any], StepReport | None]:
    """Columns: the longest context at that batch, the largest batch at that context, each confirmed by a compile; and
    the report of that batch."""
    longest = _confirmed(model, config, target, budget.longest_context(batch), lambda c: (batch, c))
    progress.done(f"longest context, {'none' if longest is None else f'{longest.context:,} tokens'}")
    most = budget.largest_batch(context)
    largest = _confirmed(model, config, target, most - most % 8 or most, lambda b: (b, context))
    progress.done(f"largest batch, {'none' if largest is None else f'{largest.shape.num_seqs:,} sequences'}")
    columns: dict[str, Any] = {}
    for name, unit, made, value in (
        ("longest_context", "tokens", longest, longest and longest.context),
        ("largest_batch", "sequences", largest, largest and largest.shape.num_seqs),
    ):
        if made is not None:
            columns[f"metrics.{name}_{unit}"] = value
            columns[f"metrics.{name}_static_tokens_per_s"] = made.tokens_per_s(made.static_seconds)
            columns[f"metrics.{name}_least_tokens_per_s"] = made.tokens_per_s(made.least_seconds)
    return columns, largest


def _confirmed(model: CausalLM, config: Config, target: Target, value: int, sizes) -> StepReport | None:
    """The decode step at the largest of the values, from `value` down by what the compiler says is missing."""
    while value > 0:
        batch, context = sizes(value)
        program = program_for(model, config.engine, target, batch, context)
        (made,) = compile_steps(program, target, context, [max(program.shapes)])
        if made.fits:
            return made
        assert isinstance(made.outcome, aot.TooLarge)
        value -= max(1, round(value * made.outcome.missing_bytes / made.cache))
    return None


def _print_found(console: Console, found: dict[str, Any], batch: int, context: int) -> None:
    for key, text in (
        ("metrics.longest_context_tokens", f"Longest context of {batch} sequences: {{:,}} tokens"),
        ("metrics.largest_batch_sequences", f"Largest batch of {context} tokens a sequence: {{:,}} a replica"),
    ):
        if key in found:
            stem = key.rsplit("_", 1)[0]
            rates = (found[f"{stem}_static_tokens_per_s"], found[f"{stem}_least_tokens_per_s"])
            console.print(
                text.format(found[key]) + f" (static {rates[0]:,.0f}, at the roofline {rates[1]:,.0f} tokens/s)"
            )


def _explain(
    console: Console,
    model: CausalLM,
    config: Config,
    target: Target,
    budget: Budget,
    batch: int,
    context: int,
    missing: int,
) -> None:
    console.print(
        f"{Path(config.model).name} does not fit: {batch} × {context} tokens on {target} lack "
        f"{missing / GIB:.2f} GiB a device (weights {budget.weights / GIB:.2f}, cache "
        f"{budget.cache(batch, context) / GIB:.2f}, available {budget.available / GIB:.2f} GiB).",
        style="bold red",
        highlight=False,
    )
    for way in ways_to_fit(model, config.engine, target, budget, batch, context):
        console.print(f"  • {way}", highlight=False)


def _common(config: Config, target: Target, fits: bool) -> dict[str, Any]:
    """Columns of every row; the machine is the one that compiled, but for its accelerators."""
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    stated = to_json(to_config_dict(config).to_dict())
    row = environment.of_job("compile", VERSION, stated, began, fault="" if fits else "does not fit")
    host = {name: value for name, value in row.items() if not name.startswith("system.accelerator")}
    bodies = {op: [choice.body for choice in choices] for op, choices in kernels.bodies_used().items()}
    return {
        **host,
        "software.kernels": to_json(bodies),
        "software.xla_flags": f"{host['software.xla_flags']} {xla_flags.as_text(target.compiler_options)}".strip(),
        "model.name": Path(config.model).name,
        "model.weight_data_types": config.engine.weight_dtype or config.engine.dtype,
        "model.cache_data_types": config.engine.cache_dtype or config.engine.dtype,
    }
