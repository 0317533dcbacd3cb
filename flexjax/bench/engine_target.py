"""Our engine as a target."""

import time
from pathlib import Path
from typing import Any

import jax

from flexjax.bench.result import StartUp, StatsSample
from flexjax.bench.target import TargetStats, allocated_dtypes
from flexjax.engine import EngineConfig, Request, ServesModel, load_engine
from flexjax.engine.device import cache_dtypes, state_dtypes
from flexjax.hardware import xla_flags
from flexjax.nn import weight_dtypes


class EngineTarget:
    """Loads a model directory into an engine and serves from the engine's own thread."""

    def __init__(self, directory: str | Path, config: EngineConfig, name: str = "optimised"):
        self.name = name
        self.config = config
        self._directory = Path(directory)
        self._engine: ServesModel | None = None

    @property
    def engine(self) -> ServesModel:
        assert self._engine is not None, "the target has not been started"
        return self._engine

    def start(self) -> StartUp:
        began = time.perf_counter()
        engine = self._engine = load_engine(self._directory, self.config)
        engine.start()
        # Other processes compile at the same time as this one.
        compile_s = sum(one.stats.compile_seconds for one in engine.here)
        return StartUp(load_s=time.perf_counter() - began - compile_s, compile_s=compile_s)

    def submit(self, request: Request) -> None:
        self.engine.submit(request)

    def stop(self) -> None:
        if self._engine is not None:
            self._engine.stop()

    def describe(self) -> dict[str, Any]:
        runners, config = self.engine.runners, self.config
        runner = runners[0]
        pages = cache_dtypes(runner.cache, runner.layout) or None  # A recurrent model has none.
        return {
            "software": "flexjax engine",
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "weights_dtype": allocated_dtypes(
                "weights",
                config.weight_dtype or config.dtype,
                weight_dtypes(runner.model()),
                beside=(config.dtype, "int8") if config.weight_dtype else (),  # Norms, and tables, which are int8.
            ),
            "cache_dtype": pages and allocated_dtypes("cache", config.cache_dtype or config.dtype, pages),
            "state_dtype": ", ".join(sorted(state_dtypes(runner.cache, runner.layout))) or None,
            "weights_bytes": sum(r.weight_bytes for r in runners),
            "cache_bytes": sum(r.cache_bytes for r in runners),
            "mesh": "one device" if config.mesh is None else str(config.mesh),
            "batching": "continuous, paged",
            "max_num_seqs": config.max_num_seqs,
            "max_num_batched_tokens": config.max_num_batched_tokens,
            "max_model_len": self.engine.max_model_len,
            "page_size": config.page_size,
            "num_pages": runner.num_pages,
            "decode_steps_per_dispatch": config.decode_steps,
            "pipeline_depth": config.pipeline_depth,
            "xla_options": xla_flags.as_text(runner.compiler_options),
        }

    def stats(self) -> TargetStats:
        stats = self.engine.stats
        samples = tuple(
            StatsSample(s.time, s.running, s.waiting, s.used_pages / stats.page_capacity) for s in list(stats.samples)
        )
        counts = stats.cache_values_written, stats.cache_values_clipped
        return TargetStats(samples, stats.host_seconds, stats.wait_seconds, *counts)
