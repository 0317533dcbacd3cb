"""Where a decoding step's time goes: the device alone against the whole engine, in alternating rounds."""

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from flexjax import files
from flexjax.engine import Engine, EngineConfig, Request, SamplingParams, load_engine, seconds_a_step
from flexjax.hardware import compile_cache
from flexjax.progress import Progress
from flexjax.records import JobRecord, Value
from flexjax.refusal import Refusal

VERSION = "1"  # Of what the columns mean.


@dataclasses.dataclass(frozen=True)
class Config:
    model: str = "models/weights/pydoc-7m"
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    prompt_tokens: int = 64
    output_tokens: int = 128
    rounds: int = 7  # Of each side, A B A B …

    def __post_init__(self):
        if self.engine.mesh is not None and self.engine.mesh.data != 1:
            raise Refusal(f"One replica is profiled, which the mesh must be: data=1; got data={self.engine.mesh.data}.")


@dataclasses.dataclass(frozen=True)
class Round:
    """Milliseconds a decoding step at full batch."""

    device_ms: float  # The compiled step dispatched back to back, nothing else between.
    engine_ms: float  # Between dispatches of the running engine.
    busy_host_ms: float  # Scheduling, packing, handing over: most of it while the device works.

    @property
    def overhead(self) -> float:
        """Share of an engine step in which the device does not work on it."""
        return 1 - self.device_ms / self.engine_ms


def run(config: Config, workdir: Path) -> int:
    record = JobRecord.begin("profile", VERSION, config, workdir)
    compile_cache.enable()
    loaded = load_engine(config.model, config.engine)
    rounds: list[Round] = []
    with contextlib.ExitStack() as stack:
        stack.callback(loaded.stop)
        (engine,) = loaded.here
        progress = stack.enter_context(Progress(config.rounds + 1))
        for i, one in enumerate(_measured(engine, config)):
            if i:  # The first warms up.
                rounds.append(one)
            which = f"round {i} of {config.rounds}" if i else "warming up"
            progress.done(f"{which}: a step takes the device {one.device_ms:.3f}, the engine {one.engine_ms:.3f} ms")
    if rounds:
        _write(rounds, workdir / "profile.csv")
        _print(rounds, config)
        record.keep(_columns(rounds, config), kind="measured", fault=progress.fault)
    progress.close()
    return 0


def _measured(engine: Engine, config: Config) -> Iterator[Round]:
    rng = np.random.default_rng(0)
    size = config.engine.max_num_seqs
    prompts = rng.integers(1, engine.runner.vocab_size, (size, config.prompt_tokens))
    prompts = [tuple(row) for row in prompts.tolist()]
    for _ in range(config.rounds + 1):
        middle = config.prompt_tokens + config.output_tokens // 2  # Of the engine's round.
        device_ms = 1e3 * seconds_a_step(engine, prompts, middle)
        yield Round(device_ms, *_engine_round(engine, prompts, config))


def _engine_round(engine: Engine, prompts: list[tuple[int, ...]], config: Config) -> tuple[float, float]:
    params = SamplingParams(temperature=0, max_tokens=config.output_tokens, ignore_eos=True)
    engine.stats.reset()
    for i, prompt in enumerate(prompts):
        engine.submit(Request(f"profile-{i}", prompt, params))
    while engine.step():
        pass
    samples = list(engine.stats.samples)
    full = [s.running == len(prompts) and s.prefill_rows == 0 for s in samples]
    # From one full decoding dispatch to the next: the steps of the first lie between.
    spans = [
        (b.time - a.time) / a.num_steps
        for a, b, x, y in zip(samples, samples[1:], full, full[1:], strict=False)
        if x and y
    ]
    steps = sum(s.num_steps for s in samples)
    return 1e3 * statistics.median(spans), 1e3 * engine.stats.host_seconds / steps


def _write(rounds: list[Round], path: Path) -> None:
    header = ("device_ms", "engine_ms", "busy_host_ms", "overhead")
    files.write_csv(path, header, [(r.device_ms, r.engine_ms, r.busy_host_ms, r.overhead) for r in rounds])


def _columns(rounds: list[Round], config: Config) -> dict[str, Value]:
    median = lambda name: statistics.median(getattr(one, name) for one in rounds)
    return {
        "model.name": Path(config.model).name,
        "metrics.device_step_ms": median("device_ms"),
        "metrics.engine_step_ms": median("engine_ms"),
        "metrics.host_busy_step_ms": median("busy_host_ms"),
        "metrics.host_overhead_share": median("overhead"),
    }


def _print(rounds: list[Round], config: Config) -> None:
    table = Table(title=f"Decoding {config.engine.max_num_seqs} sequences, {config.engine.dtype} (measured)")
    for name in ("a step", "median", "min", "max"):
        table.add_column(name, justify="left" if name == "a step" else "right")
    rows = {
        "device alone, ms": [r.device_ms for r in rounds],
        "engine, ms": [r.engine_ms for r in rounds],
        "host busy, ms (overlapped)": [r.busy_host_ms for r in rounds],
        "host time outside the device, %": [100 * r.overhead for r in rounds],
    }
    for name, values in rows.items():
        table.add_row(name, *(f"{f(values):.2f}" for f in (statistics.median, min, max)))
    Console().print(table)
