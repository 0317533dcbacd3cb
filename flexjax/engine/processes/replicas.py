"""Several engines behind one door: data-parallel serving, in which each replica has pages of its own."""

import contextlib
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Never

import jax
import numpy as np
from jax.sharding import Mesh

from flexjax.engine.config import EngineConfig
from flexjax.engine.device.runner import StepRunner
from flexjax.engine.engine import Engine
from flexjax.engine.processes import crew
from flexjax.engine.processes.lockstep import Followers, follow, watch
from flexjax.engine.processes.meeting import Meeting
from flexjax.engine.processes.post import Post
from flexjax.engine.processes.remote import Remote, serve
from flexjax.engine.protocol import ServesModel, TakesRequests
from flexjax.engine.request import QueueFull, Request
from flexjax.engine.stats import SUMS, EngineStats
from flexjax.hardware.mesh import make_mesh, replicas
from flexjax.refusal import Refusal, Unsupported

_LOADED = "loaded"


def load_engine(
    directory: str | Path, config: EngineConfig | None = None, devices: Sequence[Any] | None = None
) -> ServesModel:
    """The engine of a Hugging Face model directory on `config.mesh` over `devices` (default: all of them), or
    `Replicas` of it where the mesh has a `data` axis or is spread over processes: then every process makes this call,
    and process 0 takes the requests."""
    config = config or EngineConfig()
    if config.mesh is None:
        if devices is not None:
            raise Refusal("devices are those of a mesh: give mesh=MeshConfig(tensor=…) with them.")
        return Engine.load(directory, config)
    meshes = replicas(make_mesh(config.mesh, devices))
    members = [tuple(sorted({d.process_index for d in mesh.devices.flat})) for mesh in meshes]
    if any(processes != (jax.process_index(),) for processes in members):
        _check_members(members, range(jax.process_count()))
        crew.summon(directory, config, devices)
        return _across_processes(directory, config, meshes, members)
    engines = [Engine.load(directory, config, mesh) for mesh in meshes]
    return Replicas(engines) if len(engines) > 1 else engines[0]


class Replicas:
    """Engines of the same model that look like one: a request goes to the engine with the fewest open ones.

    Each has its weights, its pages, its scheduler and its thread, so they share nothing and wait for nobody. Over
    several processes there is a `meeting`.
    """

    def __init__(self, engines: Sequence[TakesRequests], meeting: Meeting | None = None):
        self.engines, self.meeting = tuple(engines), meeting
        first = self._first = self.here[0]
        self.config, self.vocabulary, self.placement = first.config, first.vocabulary, first.placement
        self.model_config, self.max_model_len = first.model_config, first.max_model_len
        self._routing = threading.Lock()

    def start(self) -> None:
        for engine in self.engines:
            engine.start()

    def stop(self) -> None:
        with contextlib.ExitStack() as stack:  # Whichever cannot stop, the others do.
            if self.meeting is not None:
                stack.callback(self.meeting.post.close)
            for engine in self.engines:
                stack.callback(engine.stop)

    def check(self, request: Request) -> None:
        self._first.check(request)

    def check_tokens(self, token_ids: Iterable[int]) -> None:
        self._first.check_tokens(token_ids)

    def score(self, tokens: Iterable[int], rows_per_step: int) -> np.ndarray:
        return self._first.score(tokens, rows_per_step)

    def submit(self, request: Request) -> None:
        """As `Engine.submit`; of the engines that have not failed the first with fewest open requests."""
        with self._routing:
            if self.holds(request.id):
                raise Refusal(f"Request ids must be unique among those in flight; {request.id!r} is taken.")
            healthy = [engine for engine in self.engines if engine.failure is None] or self.engines
            *sooner, last = sorted(healthy, key=lambda engine: engine.num_open)
            for engine in sooner:
                with contextlib.suppress(QueueFull):
                    return engine.submit(request)
            last.submit(request)

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
    def here(self) -> tuple[Engine, ...]:
        """Those that this process has a part in and does not lead from afar."""
        return tuple(engine for engine in self.engines if isinstance(engine, Engine))

    @property
    def runners(self) -> tuple[StepRunner, ...]:
        """One a replica; that of the first one here, which is like all others."""
        return tuple(runner for engine in self.engines for runner in engine.runners)

    @property
    def failure(self) -> BaseException | None:
        """What ended the first replica that has failed; the other replicas go on."""
        return next((engine.failure for engine in self.engines if engine.failure is not None), None)

    @property
    def num_open(self) -> int:
        return sum(engine.num_open for engine in self.engines)

    @property
    def stats(self) -> EngineStats:
        """The sums, and every replica's samples in order of time; capacities are those of one replica, as is
        each sample."""
        each = [engine.stats for engine in self.engines]
        total = EngineStats(each[0].page_capacity, each[0].max_num_seqs)
        for name in SUMS:
            setattr(total, name, sum(getattr(stats, name) for stats in each))
        total.samples.extend(sorted((s for stats in each for s in list(stats.samples)), key=lambda s: s.time))
        return total


class Follower(Replicas):
    """What the replicas are in a process that is not process 0: their parts run here, and nobody is let in."""

    def __init__(self, engines: Sequence[Engine], meeting: Meeting, threads: Sequence[threading.Thread]):
        super().__init__(engines, meeting)
        self._threads = threads

    def start(self) -> None:
        """They run since they were loaded."""

    def stop(self) -> None:
        """Waits until process 0 stops."""
        for thread in self._threads:
            thread.join()

    def submit(self, request: Request) -> Never:
        raise Unsupported(
            f"Process 0 takes the requests of a model over several processes; this is process {jax.process_index()} of "
            f"{jax.process_count()}. Here, call LLM.follow(), which returns when process 0 closes the model, or make "
            "the same generate and score calls in every process."
        )


def _across_processes(
    directory: str | Path, config: EngineConfig, meshes: Sequence[Mesh], members: Sequence[tuple[int, ...]]
) -> Replicas:
    """This process's part: a replica is led by the first of its processes, and process 0 knows them all."""
    here = jax.process_index()
    post = Post()
    engines = {i: Engine.load(directory, config, mesh) for i, mesh in enumerate(meshes) if here in members[i]}
    jobs: list[tuple[Any, ...]] = []
    for processes in sorted({members[i] for i in engines}):
        group = {i: engine for i, engine in engines.items() if members[i] == processes}
        leader, others, box = processes[0], processes[1:], f"turns-{processes[0]}"
        if here != leader:
            jobs.append((follow, group, post, box))
        elif others:
            first, *rest = group.values()
            first.turn_with(rest)
            for i, engine in group.items():
                engine.followers = Followers(post, others, box, i)
            jobs.append((watch, first, post))
        if here == leader != 0:
            jobs += [(serve, engine, post, _box(i)) for i, engine in group.items()]
    threads = [threading.Thread(target=job, args=args, daemon=True) for job, *args in jobs]
    for thread in threads:
        thread.start()
    meeting = Meeting(post)
    _wait_for_all(post)
    if here != 0:
        return Follower(list(engines.values()), meeting, threads)
    first = next(iter(engines.values()))
    faces = [engines.get(i) or Remote(post, processes[0], _box(i), first) for i, processes in enumerate(members)]
    return Replicas(faces, meeting)


def _wait_for_all(post: Post) -> None:
    """Process 0's first requests find every process ready."""
    if post.index:
        return post.send(0, _LOADED, post.index)
    for _ in range(1, post.count):
        if post.take(_LOADED) is None:
            raise RuntimeError(f"The model has ended: {post.lost}.")


def _box(replica: int) -> str:
    return f"replica-{replica}"


def _check_members(members: Sequence[tuple[int, ...]], everyone: Sequence[int]) -> None:
    idle = sorted(set(everyone) - {process for processes in members for process in processes})
    if idle:
        raise Refusal(
            f"Every process must have a part in a model over several; the mesh has no device of the processes {idle}. "
            "Give it devices of all, or leave those processes out of the job."
        )
    for one in members:
        for other in members:
            if one != other and set(one) & set(other) and max(len(one), len(other)) > 1:
                raise Unsupported(
                    f"Two replicas share all their processes or none; these are on the processes {one} and {other}. "
                    "Choose data and tensor so that a replica fills whole processes, or a process whole replicas."
                )
