"""Measures a target under MLPerf rules: scenarios, workloads, metrics, validity, quality, cost, report."""

from flexjax.bench.ab import Load, Side, alternate, compare, measure
from flexjax.bench.engine_target import EngineTarget
from flexjax.bench.http_target import HttpConfig, HttpTarget
from flexjax.bench.judge import Judgement, QualityConfig, judge_sides, under_load
from flexjax.bench.loadgen import LoadRun, run_loadgen
from flexjax.bench.metrics import Distribution, Metrics, summarise
from flexjax.bench.replay import run_replay
from flexjax.bench.result import (
    BenchResult,
    Comparison,
    LoadedAnswer,
    Quality,
    RateSearch,
    RequestTimeline,
    SideRun,
    StartUp,
    Verdict,
)
from flexjax.bench.scenario import Limits, Scenario, ScenarioName
from flexjax.bench.stock import StockConfig, StockTarget
from flexjax.bench.target import Target, TargetStats
from flexjax.bench.trace import TraceRow, read_trace
from flexjax.bench.workload import Item, Lengths, WorkloadConfig, build_workload, with_unknown_ends

__all__ = [
    # What is measured.
    "EngineTarget",
    "HttpConfig",
    "HttpTarget",
    "StockConfig",
    "StockTarget",
    "Target",
    "TargetStats",
    # Under which load.
    "Item",
    "Lengths",
    "Limits",
    "Scenario",
    "ScenarioName",
    "TraceRow",
    "WorkloadConfig",
    "build_workload",
    "read_trace",
    "with_unknown_ends",
    # How.
    "Judgement",
    "Load",
    "LoadRun",
    "QualityConfig",
    "Side",
    "alternate",
    "compare",
    "judge_sides",
    "measure",
    "run_loadgen",
    "run_replay",
    "summarise",
    "under_load",
    # What comes of it.
    "BenchResult",
    "Comparison",
    "Distribution",
    "LoadedAnswer",
    "Metrics",
    "Quality",
    "RateSearch",
    "RequestTimeline",
    "SideRun",
    "StartUp",
    "Verdict",
]
