"""Where the points of a sweep run: in processes of this machine, or as tasks of a Ray cluster.

Both run the launcher as a process of its own for each point: XLA flags, memory and compiled programs of one do not
touch another, and a point that dies takes nothing with it.
"""

import dataclasses
import fnmatch
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

from flexjax.files import write_bytes, write_text
from flexjax.refusal import Refusal
from flexjax.shipped import home


@dataclasses.dataclass(frozen=True)
class ExecutorConfig:
    """Where the points run, and how many at once."""

    kind: Literal["processes", "ray"] = "processes"
    parallel: int = 1  # Points at once on this machine. Over 1 they slow each other: not for timings.
    ray_address: str = ""  # Of a running cluster ("auto" finds this machine's); empty starts Ray here.
    cpus_per_point: int = 1  # Ray runs so many points at once as it has these; all of a machine's for timings.
    gpus_per_point: int = 0
    # Files of a point's workdir that Ray brings back, by pattern; they travel through memory.
    keep: tuple[str, ...] = ("*.json", "*.csv", "*.html", "*.png", "*.txt", "results.parquet/*")

    def __post_init__(self):
        if self.parallel < 1 or self.cpus_per_point < 1 or self.gpus_per_point < 0:
            raise Refusal(
                "parallel and cpus_per_point must be at least 1 and gpus_per_point at least 0; got "
                f"{self.parallel}, {self.cpus_per_point} and {self.gpus_per_point}."
            )


@dataclasses.dataclass(frozen=True)
class Task:
    """A point to run: its config file's text, and the folder that is to hold its results."""

    key: str
    config_file: str
    folder: Path

    def prepare(self) -> Path:
        """Writes the config file; returns its path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "config.py"
        write_text(path, self.config_file)
        return path


@dataclasses.dataclass(frozen=True)
class Outcome:
    task: Task
    status: int  # Exit status of the launcher; negative for a signal.
    seconds: float


Outcomes = Generator[Outcome, None, None]
Executor = Callable[[Sequence[Task], ExecutorConfig], Outcomes]


def run_in_processes(tasks: Sequence[Task], config: ExecutorConfig) -> Outcomes:
    """Runs the tasks here, `parallel` at a time; yields each as it ends. Closing it ends those that run."""
    running: set[subprocess.Popen[bytes]] = set()

    def run(task: Task) -> Outcome:
        began = time.monotonic()
        command = _command(task.prepare(), task.folder)
        with (task.folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            running.add(process)
            status = process.wait()
            running.discard(process)
        return Outcome(task, status, time.monotonic() - began)

    pool = ThreadPoolExecutor(config.parallel)
    try:
        for done in as_completed([pool.submit(run, task) for task in tasks]):
            yield done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.terminate()
        pool.shutdown()


def run_on_ray(tasks: Sequence[Task], config: ExecutorConfig) -> Outcomes:
    """Runs the tasks over a Ray cluster, as many at once as it has room; yields each as it ends.

    Each host needs the project; results come back through Ray, so no file system need be shared.
    """
    ray = _import_ray()
    local: dict[str, Any] = {}
    if not config.ray_address:
        # Ray gives way to everything else on a machine unless told; points are measured.
        local = dict(num_cpus=config.parallel * config.cpus_per_point, _system_config=dict(worker_niceness=0))
    ray.init(address=config.ray_address or None, include_dashboard=False, log_to_driver=False, **local)
    try:
        # A point that dies is reported; whether it is worth another try is for who reads that.
        remote = ray.remote(num_cpus=config.cpus_per_point, num_gpus=config.gpus_per_point, max_retries=0)(_run_far)
        pending = {remote.remote(task.config_file, config.keep): task for task in tasks}
        while pending:
            (done,), _ = ray.wait(list(pending))
            task = pending.pop(done)
            task.prepare()
            try:
                status, seconds, files = ray.get(done)
            except ray.exceptions.RayError as error:
                status, seconds, files = 1, 0.0, {"log.txt": str(error).encode()}
            for name, content in files.items():
                path = task.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, content)
            yield Outcome(task, status, seconds)
    finally:
        ray.shutdown()  # Ends the points that run; a cluster that was there before stays.


EXECUTORS: Mapping[str, Executor] = {"processes": run_in_processes, "ray": run_on_ray}


def _run_far(config_file: str, keep: Sequence[str]) -> tuple[int, float, dict[str, bytes]]:
    """On a worker: exit status, seconds, and the files to bring back."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "config.py").write_text(config_file)
        with (folder / "log.txt").open("wb") as log:
            # Models are named by paths from the checkout; Ray starts workers elsewhere.
            status = subprocess.run(
                _command(folder / "config.py", folder),
                cwd=home(),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                check=False,
            ).returncode
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        files = {n: (folder / n).read_bytes() for n in names if any(fnmatch.fnmatch(n, pattern) for pattern in keep)}
    return status, time.monotonic() - began, files


def _command(config: Path, workdir: Path) -> list[str]:
    return [sys.executable, "-m", "flexjax.launch", f"--config={config}", f"--workdir={workdir}"]


def _import_ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports] (an extra)
    except ModuleNotFoundError as error:
        raise Refusal(
            "executor.kind='ray' needs the package ray, which is not installed. Install the extra 'search' "
            "(pip install 'flexjax[search]'), or set executor.kind='processes'."
        ) from error
    except KeyError as error:
        # Ray asks amdsmi, which zeus brings, for AMD GPUs; without AMD's library that fails so.
        raise Refusal(
            f"ray cannot be imported beside the package amdsmi on a machine without AMD's library ({error} is "
            "missing). pip uninstall amdsmi, or set executor.kind='processes'."
        ) from error
    return ray
