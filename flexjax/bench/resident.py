"""What serving a model keeps in memory: a process of its own loads it, answers requests and tells.

python -m flexjax.bench.resident DIRECTORY '{"kind": "engine", "config": {"weight_dtype": "int8"}, …}'
"""

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from flexjax import kernels
from flexjax.bench.engine_target import EngineTarget
from flexjax.bench.stock import StockConfig, StockTarget
from flexjax.config import from_config_dict
from flexjax.engine import EngineConfig, Request, SamplingParams, TokenEvent
from flexjax.hardware import compile_cache, memory


@dataclasses.dataclass(frozen=True)
class Resident:
    """In bytes, of the whole process, Python and JAX included; where a device counts its own memory, of that."""

    resident: int  # When the requests are answered.
    peak: int  # Loading and compiling included. Programs that the compilation cache has need less.
    serving_peak: int  # While the requests are answered.
    weights: int
    cache: int


@dataclasses.dataclass(frozen=True)
class Work:
    """What the process does."""

    kind: str  # "engine" or "stock".
    config: dict[str, Any]
    prompt: int  # tokens
    output: int  # tokens
    requests: int = 1  # At once.
    bodies: dict[str, str] = dataclasses.field(default_factory=dict)  # Op → kernel body asked for.


def resident(
    directory: str | Path,
    config: EngineConfig | StockConfig,
    *,
    prompt: int,
    output: int,
    requests: int = 1,
    bodies: dict[str, str] | None = None,
) -> Resident:
    """Of a process that serves the model directory by `config`, compiles all its steps and answers so many requests at
    once, each with `prompt` tokens and `output` to make. RuntimeError with what the process said where it fails."""
    kind = "stock" if isinstance(config, StockConfig) else "engine"
    work = Work(kind, dataclasses.asdict(config), prompt, output, requests, bodies or {})
    command = [sys.executable, "-m", "flexjax.bench.resident", str(directory), json.dumps(dataclasses.asdict(work))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The process that was to serve {directory} failed: {done.stderr[-2000:]}")
    return Resident(**json.loads(done.stdout.splitlines()[-1]))


def serve(directory: str, work: Work) -> Resident:
    """Loads and serves in this process."""
    if work.kind == "stock":
        target = StockTarget(directory, from_config_dict(StockConfig, work.config))
    else:
        target = EngineTarget(directory, from_config_dict(EngineConfig, work.config))
    with kernels.use_bodies(**work.bodies):
        target.start()
    # What compiling left behind goes, of every side alike, and what comes now is what serving takes.
    memory.trim()
    memory.forget_code()
    peak = memory.peak_rss_bytes()
    exact = memory.reset_peak_rss()
    try:
        _answer(target, work)
        held, serving = memory.rss_bytes(), memory.peak_rss_bytes()
        described = target.describe()
    finally:
        target.stop()
    on_device = memory.peak_device_bytes()
    cache = described.get("cache_bytes", described.get("cache_bytes_largest", 0))
    return Resident(
        resident=held,
        peak=on_device or max(peak, serving),
        serving_peak=on_device or (serving if exact else max(peak, serving)),
        weights=described["weights_bytes"],
        cache=cache,
    )


def _answer(target: EngineTarget | StockTarget, work: Work) -> None:
    ended = threading.Semaphore(0)
    failed: list[str] = []

    def listen(event: TokenEvent) -> None:
        if event.kind == "done":
            if event.finish_reason in ("error", "cancelled"):
                failed.append(event.error or str(event.finish_reason))
            ended.release()

    params = SamplingParams(temperature=0, max_tokens=work.output, ignore_eos=True)
    for number in range(work.requests):
        # Ids that every vocabulary has, another beginning for each.
        ids = tuple(1 + (number + place) % 50 for place in range(work.prompt))
        target.submit(Request(f"r{number}", ids, params, listener=listen))
    for _ in range(work.requests):
        ended.acquire()
    if failed:
        raise RuntimeError(failed[0])


if __name__ == "__main__":
    compile_cache.enable()
    directory, work = sys.argv[1:]
    print(json.dumps(dataclasses.asdict(serve(directory, from_config_dict(Work, json.loads(work))))))
