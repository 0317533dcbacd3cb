"""Several engines behind one door: data-parallel serving, in which each replica has pages of its own."""

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from flexjax.engine.config import EngineConfig
from flexjax.engine.engine import Engine
from flexjax.engine.request import Request
from flexjax.engine.runner import StepRunner
from flexjax.engine.stats import EngineStats
from flexjax.hardware.mesh import make_mesh, replicas


def load_engine(
    directory: str | Path, config: EngineConfig | None = None, devices: Sequence[Any] | None = None
) -> "Engine | Replicas":
    """The engine of a Hugging Face model directory on `config.mesh` over `devices` (default: all of them), or
    `Replicas` of it where the mesh has a `data` axis."""
    config = config or EngineConfig()
    if config.mesh is None:
        if devices is not None:
            raise ValueError("devices are those of a mesh: give mesh=MeshConfig(tensor=…) with them.")
        return Engine.load(directory, config)
    meshes = replicas(make_mesh(config.mesh, devices))
    others = {d.process_index for mesh in meshes for d in mesh.devices.flat} - {jax.process_index()}
    if others and len(meshes) > 1:
        raise NotImplementedError(
            f"Replicas live in one process; these would also be on devices of the processes {sorted(others)}. Give "
            "each process replicas of its own with devices=jax.local_devices(), or data=1."
        )
    engines = [Engine.load(directory, config, mesh) for mesh in meshes]
    return Replicas(engines) if len(engines) > 1 else engines[0]


class Replicas:
    """Engines of the same model that look like one: a request goes to the engine with the fewest open ones.

    Each has its weights, its pages, its scheduler and its thread, so they share nothing and wait for nobody.
    """

    def __init__(self, engines: Sequence[Engine]):
        self.engines = tuple(engines)
        first = engines[0]
        self.config, self.vocabulary, self.placement = first.config, first.vocabulary, first.placement
        self.model_config, self.max_model_len = first.model_config, first.max_model_len
        self._routing = threading.Lock()

    def start(self) -> None:
        for engine in self.engines:
            engine.start()

    def stop(self) -> None:
        for engine in self.engines:
            engine.stop()

    def check(self, request: Request) -> None:
        self.engines[0].check(request)

    def check_tokens(self, token_ids: Iterable[int]) -> None:
        self.engines[0].check_tokens(token_ids)

    def submit(self, request: Request) -> None:
        """As `Engine.submit`; of the engines that have not failed the first with fewest open requests."""
        with self._routing:
            if self.holds(request.id):
                raise ValueError(f"Request ids must be unique among those in flight; {request.id!r} is taken.")
            healthy = [engine for engine in self.engines if not engine.failed] or self.engines
            min(healthy, key=lambda engine: engine.num_open).submit(request)

    def cancel(self, request_id: str) -> None:
        for engine in self.engines:
            engine.cancel(request_id)

    def holds(self, request_id: str) -> bool:
        return any(engine.holds(request_id) for engine in self.engines)

    def step(self) -> bool:
        """One turn of every engine; False when none has anything to do."""
        busy = [engine.step() for engine in self.engines]
        return any(busy)

    @property
    def runners(self) -> tuple[StepRunner, ...]:
        return tuple(engine.runner for engine in self.engines)

    @property
    def num_open(self) -> int:
        return sum(engine.num_open for engine in self.engines)

    @property
    def stats(self) -> EngineStats:
        """The sums, and every replica's samples in order of time; capacities are those of one replica, as is
        each sample."""
        each = [engine.stats for engine in self.engines]
        total = EngineStats(each[0].page_capacity, each[0].max_num_seqs)
        for name in ("load_seconds", "compile_seconds", "host_seconds", "wait_seconds", "preemptions", "output_tokens"):
            setattr(total, name, sum(getattr(stats, name) for stats in each))
        total.samples.extend(sorted((s for stats in each for s in list(stats.samples)), key=lambda s: s.time))
        return total
