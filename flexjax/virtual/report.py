"""Compiled steps as a table in the terminal, a picture, and records."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from flexjax.records import Record, to_json
from flexjax.virtual.budget import Budget
from flexjax.virtual.steps import StepReport
from flexjax.virtual.target import Target
from flexjax.virtual.training import TrainReport

GIB, MIB = 2**30, 2**20
_LEAN: dict[str, Any] = dict(
    title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False
)


def steps_table(reports: Sequence[StepReport], title: str) -> Table:
    """One row for each step that fits, at most 80 columns wide."""
    table = Table(title=title, **_LEAN)
    table.add_column("step", no_wrap=True)
    columns = "weights cache temp code read sent flops static least ratio tokens/s".split()
    units = ["GiB", "GiB", "MiB", "MiB", "GB", "MB", "G", "ms", "ms", "", ""]
    for name, unit in zip(columns, units, strict=True):
        table.add_column(f"{name}\n{unit}", justify="right", no_wrap=True)
    for report in filter(lambda report: report.fits, reports):
        footprint, program = report.compiled.footprint, report.compiled.program
        static, least = report.static_seconds, report.least_seconds
        table.add_row(
            report.name,
            f"{report.weights / GIB:.2f}",
            f"{report.cache / GIB:.2f}",
            f"{footprint.temporaries / MIB:.1f}",
            f"{footprint.code / MIB:.1f}",
            f"{program.hbm_bytes / 1e9:.2f}",
            f"{program.sent_bytes / 1e6:.1f}",
            f"{program.flops / 1e9:.0f}",
            f"{1e3 * static:.2f}",
            f"{1e3 * least:.2f}",
            f"{static / least:.2f}",
            f"{report.tokens_per_s(static):,.0f}",
        )
    return table


def training_table(report: TrainReport, title: str) -> Table:
    """The one row of a train step that fits."""
    table = Table(title=title, **_LEAN)
    table.add_column("step", no_wrap=True)
    columns = "weights optim. temp read sent flops static least ratio tokens/s".split()
    units = ["GiB", "GiB", "GiB", "GB", "GB", "T", "s", "s", "", ""]
    for name, unit in zip(columns, units, strict=True):
        table.add_column(f"{name}\n{unit}", justify="right", no_wrap=True)
    program, static, least = report.compiled.program, report.static_seconds, report.least_seconds
    table.add_row(
        report.name,
        f"{report.weights / GIB:.2f}",
        f"{report.optimizer / GIB:.2f}",
        f"{report.compiled.footprint.temporaries / GIB:.2f}",
        f"{program.hbm_bytes / 1e9:.1f}",
        f"{program.sent_bytes / 1e9:.1f}",
        f"{program.flops / 1e12:.1f}",
        f"{static:.2f}",
        f"{least:.2f}",
        f"{static / least:.2f}",
        f"{report.tokens / static:,.0f}",
    )
    return table


def slowest_table(report: StepReport | TrainReport) -> Table:
    """The five kinds of op that hold a step back."""
    title = f"What holds back {report.name}, {1e3 * report.static_seconds:.2f} ms"
    table = Table(title=title, expand=True, **_LEAN)
    table.add_column("op", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in ("turns", "MB", "cycles", "ms", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for part in report.slowest:
        cycles = "" if part.cycles is None else f"{part.cycles:,}"
        share = f"{100 * part.seconds / report.static_seconds:.0f} %"
        moved, milliseconds = f"{part.moved_bytes / 1e6:,.1f}", f"{1e3 * part.seconds:.2f}"
        table.add_row(part.name, f"{part.turns}", moved, cycles, milliseconds, share)
    return table


def print_report(console: Console, reports: Sequence[StepReport], title: str) -> None:
    console.print(steps_table(reports, title))
    for report in reports:
        if not report.fits:
            console.print(f"{report.name} does not fit: {_missing_gib(report):.2f} GiB missing", style="red")
    for decodes in (True, False):
        fitting = [r for r in reports if r.fits and r.shape.decodes_only == decodes]
        if fitting:
            console.print()
            console.print(slowest_table(max(fitting, key=lambda r: r.shape)))
    console.print(
        "\nAll of one device but tokens/s, which is of all; every sequence at full context. read: to and from main "
        "memory. sent: put into collectives. static: the compiler's cycles, kernels and collectives at the chip's "
        "rates. least: weights and live cache at full bandwidth, or products at peak. Nothing here is measured.",
        style="dim",
    )


def print_training(console: Console, report: TrainReport, title: str) -> None:
    if report.fits:
        console.print(training_table(report, title))
        console.print()
        console.print(slowest_table(report))
    else:
        console.print(f"{report.name} does not fit: {_missing_gib(report):.2f} GiB missing", style="red")


def static_seconds_at(report: StepReport, context: int) -> float:
    """Of the same decode step with another context: attention over the pages grows with it, nothing else does."""
    return report.static_seconds + report.attention_seconds * (context / report.context - 1)


def plot(reports: Sequence[StepReport], budget: Budget, title: str) -> Figure:
    """Batch × context: static tokens/s where it fits, blank where not."""
    decodes = [r for r in reports if r.fits and r.shape.decodes_only]
    batches = [r.shape.num_seqs for r in decodes]
    contexts = [2**n for n in range(7, budget.longest.bit_length()) if 2**n <= budget.longest]
    rates = np.full((len(batches), len(contexts)), np.nan)
    for y, report in enumerate(decodes):
        for x, context in enumerate(contexts):
            if budget.missing(report.shape.num_seqs, context) <= 0:
                rates[y, x] = report.tokens_per_s(static_seconds_at(report, context))
    figure = Figure(figsize=(max(6.0, 0.85 * len(contexts) + 2.5), 0.42 * len(batches) + 2), layout="constrained")
    axes = figure.add_subplot()
    low, high = np.nanmin(rates), np.nanmax(rates)
    image = axes.imshow(rates, aspect="auto", origin="lower", cmap="viridis", norm=LogNorm(low, max(high, 1.01 * low)))
    for (y, x), rate in np.ndenumerate(rates):
        text = "does not fit" if np.isnan(rate) else f"{rate:,.0f}"
        dark = not np.isnan(rate) and rate < np.sqrt(low * high)
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(contexts)), [f"{c:,}" for c in contexts])
    axes.set_yticks(range(len(batches)), [str(b) for b in batches])
    axes.set(xlabel="context of every sequence, tokens", ylabel="sequences a replica", title=title)
    figure.colorbar(image, label="tokens/s, all chips (compiled, static)")
    return figure


def records(reports: Sequence[StepReport], common: Mapping[str, Any]) -> list[Record]:
    """One row a step, of kind "compiled"."""
    return [Record.of({**common, **_columns(report)}) for report in reports]


def refusal(target: Target, budget: Budget, batch: int, context: int, common: Mapping[str, Any]) -> Record:
    """The one row of a model that was not compiled, because its arrays alone do not fit."""
    columns = {
        "submission.scenario": "decode",
        "technique.batch": batch,
        "technique.context_tokens": context,
        "metrics.kind": "compiled",
        "metrics.fits": False,
        "metrics.weights_bytes": budget.weights,
        "metrics.cache_bytes": budget.cache(batch, context),
        "metrics.missing_bytes": budget.missing(batch, context),
    }
    return Record.of({**common, **_system(target), **columns})


def _system(target: Target) -> dict[str, Any]:
    return {
        "system.chip": target.chip.name,
        "system.topology": target.topology,
        "system.platform": target.chip.platform,
        "system.accelerator.name": target.chip.full_name,
        "system.accelerator.vendor": target.chip.vendor,
        "system.accelerator.total_count": target.num_devices,
        "system.accelerator.memory_capacity_gib": target.chip.memory_gib,
        "technique.mesh_json": to_json(dict(target.mesh.shape)),
    }


def training_record(report: TrainReport, common: Mapping[str, Any]) -> Record:
    """The row of a train step."""
    config = report.config
    columns = {
        **_system(report.target),
        "submission.scenario": "train",
        "technique.name": report.name,
        "technique.batch": config.batch_size,
        "technique.length_tokens": config.length,
        "technique.recompute_layers": config.loop.recompute_layers,
        "metrics.optimizer_bytes": report.optimizer,
        **_outcome(report),
    }
    if report.fits:
        columns["metrics.static_tokens_per_s"] = report.tokens / report.static_seconds
        columns["metrics.least_tokens_per_s"] = report.tokens / report.least_seconds
    return Record.of({**common, **columns})


def _columns(report: StepReport) -> dict[str, Any]:
    shape = report.shape
    columns: dict[str, Any] = {
        **_system(report.target),
        "submission.scenario": "decode" if shape.decodes_only else "mixed",
        "technique.name": report.name,
        "technique.batch": shape.num_seqs,
        "technique.rows": shape.num_rows,
        "technique.context_tokens": report.context,
        "metrics.cache_bytes": report.cache,
        "metrics.live_cache_bytes": report.live_cache,
        **_outcome(report),
    }
    if report.fits:
        columns["metrics.static_tokens_per_s"] = report.tokens_per_s(report.static_seconds)
        columns["metrics.least_tokens_per_s"] = report.tokens_per_s(report.least_seconds)
    return columns


def _outcome(report: StepReport | TrainReport) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "metrics.kind": "compiled",
        "metrics.fits": report.fits,
        "metrics.weights_bytes": report.weights,
        "metrics.compile_s": report.outcome.seconds,
        "metrics.compile_s_kind": "measured",
    }
    if not report.fits:
        return {**columns, "metrics.missing_bytes": round(_missing_gib(report) * GIB)}
    footprint, program = report.compiled.footprint, report.compiled.program
    sent = {op.opcode: 0 for op in program.collectives}
    for op in program.collectives:
        sent[op.opcode] += op.turns * op.sent_bytes
    return {
        **columns,
        "metrics.temp_bytes": footprint.temporaries,
        "metrics.code_bytes": footprint.code,
        "metrics.device_bytes": footprint.total,
        "metrics.hbm_bytes": program.hbm_bytes,
        "metrics.flops": program.flops,
        **{f"metrics.sent_{kind.replace('-', '_')}_bytes": count for kind, count in sent.items()},
        "metrics.static_ms": 1e3 * report.static_seconds,
        "metrics.least_ms": 1e3 * report.least_seconds,
        "metrics.static_over_least": report.static_seconds / report.least_seconds,
        "metrics.slowest_ops": "; ".join(f"{part.name} {1e3 * part.seconds:.3f} ms" for part in report.slowest),
    }


def _missing_gib(report: StepReport | TrainReport) -> float:
    return getattr(report.outcome, "missing_bytes", 0) / GIB
