"""What a side is by its config: a target, the kernels that it runs, and the memory that it takes alone."""

import dataclasses
import os
from typing import Literal

import jax

from flexjax import kernels
from flexjax.bench.ab import Side
from flexjax.bench.engine_target import EngineTarget
from flexjax.bench.http_target import HttpConfig, HttpTarget
from flexjax.bench.resident import resident
from flexjax.bench.stock import StockConfig, StockTarget
from flexjax.bench.target import Target
from flexjax.bench.workload import WorkloadConfig
from flexjax.engine import EngineConfig
from flexjax.refusal import Refusal


@dataclasses.dataclass(frozen=True)
class SideConfig:
    """One side."""

    kind: Literal["stock", "engine", "http"]
    dtype: str = "float32"  # Of a stock side.
    batch_size: int = 16  # Of a stock side.
    engine: EngineConfig | None = None  # Of this engine side alone; None is the job's `engine`.
    bodies: dict[str, str] = dataclasses.field(default_factory=dict)  # Op → kernel body asked for, e.g. "xla".
    http: HttpConfig | None = None  # The server to measure.
    api_key_variable: str = ""  # Environment variable that holds the server's key.

    def __post_init__(self):
        if (self.kind == "http") != (self.http is not None):
            raise Refusal(f"A side needs http.url when its kind is 'http', and only then; got kind={self.kind!r}.")
        if self.bodies and self.kind == "http":
            raise Refusal(f"Kernel bodies are those of a side in this process, not of a server; got {self.bodies}.")


class SideMaker:
    """Makes the sides of one job: all serve one model and expect one workload."""

    def __init__(self, model: str, engine: EngineConfig, workload: WorkloadConfig):
        self._model, self._engine, self._workload = model, engine, workload

    def target(self, name: str, side: SideConfig) -> Target:
        """Not yet started."""
        if side.kind == "stock":
            return StockTarget(self._model, self.stock(side), name)
        if side.kind == "engine":
            return EngineTarget(self._model, side.engine or self._engine, name)
        assert side.http is not None
        return HttpTarget(side.http, name, _key(side.api_key_variable))

    def start(self, target: Target, side: SideConfig, peak_memory_bytes: int | None) -> Side:
        """Started, with the kernels that its steps were compiled with."""
        with kernels.use_bodies(**side.bodies), kernels.recording() as used:
            startup = target.start()
        bodies = {op: tuple(choice.body for choice in choices) for op, choices in used.items()}
        passed_over = tuple(
            f"{target.name}, {op}: {body} passed over, {why}"
            for op, choices in used.items()
            for choice in choices
            for body, why in choice.passed_over
        )
        return Side(target, startup, bodies, passed_over, peak_memory_bytes)

    def peak_memory(self, side: SideConfig) -> int | None:
        """Bytes that a process takes at most while it serves this side alone; None for a server elsewhere, and in a job
        over several processes."""
        if side.kind == "http" or jax.distributed.is_initialized():
            return None
        stock = side.kind == "stock"
        config = self.stock(side) if stock else side.engine or self._engine
        workload = self._workload
        return resident(
            self._model,
            config,
            prompt=workload.input.high,
            output=workload.output.high,
            requests=side.batch_size if isinstance(config, StockConfig) else config.max_num_seqs,
            bodies=side.bodies,
        ).serving_peak

    def stock(self, side: SideConfig) -> StockConfig:
        """A stock side is compiled for just the workload's longest prompt and answer."""
        return StockConfig(side.dtype, side.batch_size, self._workload.input.high, self._workload.output.high)


def _key(variable: str) -> str | None:
    key = os.environ.get(variable) if variable else None
    if variable and not key:
        raise Refusal(f"The environment variable {variable}, which holds the server's key, is unset.")
    return key
