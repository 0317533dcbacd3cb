"""Many configs, each run as a process of its own, here or over a Ray cluster."""

from flexjax.sweep.executors import EXECUTORS, ExecutorConfig, Outcome, Task
from flexjax.sweep.points import Point, grid, resolve

__all__ = [
    # What is run.
    "Point",
    "grid",
    "resolve",
    # How.
    "EXECUTORS",
    "ExecutorConfig",
    "Outcome",
    "Task",
]
