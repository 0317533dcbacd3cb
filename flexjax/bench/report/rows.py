"""A benchmark's result as record rows: one row for each run of each side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexjax.bench import cost
from flexjax.bench.report import table
from flexjax.bench.result import BenchResult, SideRun
from flexjax.hardware import chips
from flexjax.records import Record, Value, environment, to_json

# Of what the columns mean; raised when one changes its meaning. Since 2: energy counts from the first
# arrival to the last token, peak memory is that of a process which serves the side alone,
# `technique.compared_with` is the baseline (none for the baseline itself), and `submission.scenario` may be a
# variant's title ("Offline, ends unknown"): LoadGen's own scenario is `benchmark.loadgen_scenario`.
VERSION = "2"


def records_of(result: BenchResult, columns: Mapping[str, Value] | None = None) -> tuple[Record, ...]:
    """One record a run. `columns` describes the machine; by default it is asked now."""
    machine = environment.collect() if columns is None else columns
    running = chips.detect()
    return tuple(
        Record.of({**machine, **_flags(machine, run), **_columns(result, run, running)}) for run in result.runs
    )


def _flags(machine: Mapping[str, Any], run: SideRun) -> dict[str, Any]:
    """Those of the environment, and what a side gives its own compiles beside them."""
    options = run.described.get("xla_options")
    return {"software.xla_flags": f"{machine.get('software.xla_flags', '')} {options}".strip()} if options else {}


def _columns(result: BenchResult, run: SideRun, running: chips.Running) -> dict[str, Any]:
    remote = table.is_remote(run)
    return {
        "datetime": run.started_at,
        "benchmark.name": "flexjax-bench",
        "benchmark.version": VERSION,
        "benchmark.round": run.round,
        "benchmark.loadgen_scenario": run.kind,
        "benchmark.valid": run.verdict.valid,
        "benchmark.invalid_reasons": "; ".join(run.verdict.reasons),
        "benchmark.disturbed": "; ".join(run.disturbed),
        "benchmark.loadgen_verdict": run.loadgen.get("result_validity", "not driven by LoadGen"),
        "benchmark.loadgen_json": to_json(run.loadgen),
        "benchmark.config_json": to_json(result.config),
        "benchmark.notes": "; ".join(result.notes),
        "submission.scenario": run.scenario,
        "submission.division": "open",
        "metrics.kind": "measured",
        **run.metrics.to_columns(),
        "metrics.cache_values_written": run.described.get("cache_values_written"),
        "metrics.cache_values_clipped": run.described.get("cache_values_clipped"),
        "metrics.load_s": run.startup.load_s,
        "metrics.compile_s": run.startup.compile_s,
        "metrics.peak_memory_bytes": None if remote else run.peak_memory_bytes,
        # The pair that Open MLPerf compares systems by.
        "metrics.result": run.metrics.output_tokens_per_s,
        "metrics.units": "Tokens/s",
        **_quality(result, run),
        **_energy(run),
        **_cost(run, running),
        **_model(result.config, run),
        "technique.name": run.side,
        "technique.compared_with": None if run.side == result.baseline else result.baseline,
        "technique.described_json": to_json(run.described),
        **({"software.kernels": to_json(run.kernels)} if run.kernels else {}),
    }


def _quality(result: BenchResult, run: SideRun) -> dict[str, Any]:
    """Each figure of the run's side; its 95 % interval where there is one."""
    out: dict[str, Any] = {}
    for q in result.quality:
        if q.side != run.side:
            continue
        out[f"quality.{q.measure}"] = q.value
        if q.interval:
            out |= {f"quality.{q.measure}_low": q.interval.low, f"quality.{q.measure}_high": q.interval.high}
    return out


def _energy(run: SideRun) -> dict[str, Any]:
    if run.energy is None or table.is_remote(run):
        return {}
    return {
        "energy.total_j": run.energy.joules,
        "energy.total_j_kind": run.energy.kind,
        "energy.per_output_token_j": table.joules_per_token(run),
        "energy.per_output_token_j_kind": run.energy.kind,
        "energy.meter": run.energy.meter,
    }


def _cost(run: SideRun, running: chips.Running) -> dict[str, Any]:
    found = cost.of_run(running, run.metrics.duration_s, run.metrics.output_tokens)
    if found is None or table.is_remote(run):
        return {}
    return {
        "cost.usd_per_hour": found.usd_per_hour,
        "cost.usd_per_hour_kind": found.kind,
        "cost.usd_per_million_output_tokens": found.usd_per_million_output_tokens,
        "cost.usd_per_million_output_tokens_kind": found.kind,
        "cost.basis": found.basis,
    }


def model_name(config: Mapping[str, Any]) -> str:
    """The name of the model's folder, not its path, which tells of the machine; empty where none is set."""
    model = config.get("model")
    path = model.get("path") if isinstance(model, Mapping) else model
    return Path(str(path)).name if path else ""


def _model(config: Mapping[str, Any], run: SideRun) -> dict[str, Any]:
    """What was served, and in which dtype it was really allocated."""
    return {
        "model.name": run.described.get("served_model") or model_name(config),
        "model.weight_data_types": run.described.get("weights_dtype"),
        "model.cache_data_types": run.described.get("cache_dtype"),
        "model.cache_bytes": run.described.get("cache_bytes"),
    }
