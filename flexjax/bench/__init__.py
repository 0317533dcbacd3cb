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
from flexjax.bench.plan import OfflineConfig as OfflineConfig
from flexjax.bench.plan import PlanConfig as PlanConfig
from flexjax.bench.plan import PoissonConfig as PoissonConfig
from flexjax.bench.plan import SingleStreamConfig as SingleStreamConfig
from flexjax.bench.resident import Resident as Resident
from flexjax.bench.resident import resident as resident
from flexjax.bench.scenario import POISSON as POISSON
from flexjax.bench.search import SearchConfig as SearchConfig
from flexjax.bench.search import largest_rate as largest_rate
from flexjax.bench.sides import SideConfig as SideConfig
from flexjax.bench.sides import SideMaker as SideMaker
from flexjax.bench.validity import TOO_FEW as TOO_FEW
from flexjax.bench.validity import limits_missed as limits_missed
