"""Decodes and prefills on this CPU through the engine, against what its memory and its products allow."""

import dataclasses
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from flexjax import kernels
from flexjax.bench import Resident, resident
from flexjax.engine import Engine, EngineConfig, Request, SamplingParams
from flexjax.families import Family, find_family
from flexjax.lab import bare_read, peaks
from flexjax.model import CausalLM
from flexjax.nn import quantize_weights
from flexjax.progress import Progress
from flexjax.records import JobRecord, environment, to_json
from flexjax.refusal import Refusal

VERSION = "1"  # Of what the columns mean.
# Layers, width, heads, kv heads, feed-forward width, vocabulary: Llamas with tied tables and random weights.
SIZES = {
    "S": (6, 288, 6, 6, 768, 8192),
    "M": (12, 768, 12, 4, 2048, 32_000),
    "L": (24, 896, 14, 2, 4864, 32_000),
}
# dtype, weight_dtype and activation_dtype of the engine.
PRECISIONS: dict[str, tuple[str, str | None, str | None]] = {
    "float32": ("float32", None, None),
    "bfloat16": ("bfloat16", None, None),
    "int8": ("bfloat16", "int8", None),
    "int8_rows": ("bfloat16", "int8", "int8"),  # The rows too are rounded to int8.
    "int4": ("bfloat16", "int4", None),
    "int4_rows": ("bfloat16", "int4", "int8"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    sizes: tuple[str, ...] = ("S", "M", "L")
    precisions: tuple[str, ...] = tuple(PRECISIONS)
    prompt: int = 128  # Tokens.
    output: int = 128  # Tokens.
    prefill: int = 1024  # Tokens of the prompt that is timed for its own sake; 0 leaves it out.
    batches: tuple[int, ...] = (16, 32)  # Requests at once, of the same prompt and output.
    batch_size: str = "M"  # The size that serves them …
    batch_precisions: tuple[str, ...] = ("int8", "int8_rows")  # … and in which precisions.
    resident_sizes: tuple[str, ...] = ("M",)  # Whose resident memory is measured, in a process for each precision.
    rounds: int = 5  # The precisions of a size, and the limits, in turn, this often; the median counts.
    step_rows: int = 1024  # In one step of an engine, or as many as the long prompt has tokens.
    decode_steps: int = 8  # In one dispatch.

    def __post_init__(self):
        for name, given, known in (
            ("sizes", (*self.sizes, *self.resident_sizes, self.batch_size), SIZES),
            ("precisions", (*self.precisions, *self.batch_precisions), PRECISIONS),
        ):
            if unknown := [one for one in given if one not in known]:
                raise Refusal(f"{name} can be {', '.join(known)}; got {', '.join(unknown)}.")
        if min(self.prompt, self.output - 1, self.rounds, self.decode_steps) < 1:
            raise Refusal("prompt, rounds and decode_steps are at least 1, and output at least 2.")


@dataclasses.dataclass(frozen=True)
class Result:
    """A figure of one size and precision, and its part of the limit; the spread is half of highest minus lowest."""

    size: str
    precision: str
    what: str
    unit: str
    value: float
    spread: float
    of_limit: float | None

    @property
    def column(self) -> str:
        return f"metrics.{self.size}_{self.precision}_{self.what}_{self.unit}".lower().replace("/", "_per_")


def run(config: Config, workdir: Path) -> int:
    if jax.default_backend() != "cpu":
        raise Refusal(f"bench_cpu times a CPU, and this process runs on {jax.default_backend()}: JAX_PLATFORMS=cpu.")
    record = JobRecord.begin("cpu", VERSION, config, workdir)
    kernels.forget()
    console = Console()
    groups = (
        *(_Alone(size, config) for size in config.sizes),
        *(_Together(batch, config) for batch in config.batches),
        *(_Resident(size, config) for size in config.resident_sizes),
    )
    with Progress(sum(group.parts for group in groups)) as progress:
        for group in groups:
            group.measure(progress)
    results = [result for group in groups for result in group.results()]
    _print(console, results)
    used = {op: [choice.body for choice in choices] for op, choices in kernels.bodies_used().items()}
    for op, bodies in used.items():
        console.print(f"{op}: {'; '.join(kernels.in_words(op, body) for body in bodies)}", markup=False)
    columns = {**_columns(results), "technique.kernels_json": to_json(used)}
    record.keep(columns, kind="measured", fault=progress.fault)
    progress.close()
    return 0


class _Alone:
    """One request at a time: decoding, the first token, and a long prompt."""

    def __init__(self, size: str, config: Config):
        self.size, self.config = size, config
        self.parts = 1 + config.rounds + 1
        self._moved: dict[str, int] = {}
        self._decode, self._first, self._prefill, self._read = ({n: [] for n in config.precisions} for _ in range(4))
        self._peak: list[float] = []

    def measure(self, progress: Progress) -> None:
        size, config = self.size, self.config
        limit = max(config.prefill, config.prompt) + config.output
        engines = {
            name: _engine(size, name, max_num_seqs=1, max_num_batched_tokens=max(config.prefill, config.step_rows),
                          max_model_len=limit, decode_steps=config.decode_steps)
            for name in config.precisions
        }  # fmt: skip
        self._moved = {name: _moved_bytes(engine, config) for name, engine in engines.items()}
        readers = {name: bare_read(self._moved[name], name) for name in engines}
        products = list(peaks(["bfloat16"]))
        progress.done(f"{size}: {len(engines)} precisions compiled")
        for turn in range(config.rounds + 1):  # The first warms up.
            self._peak.append(max(product.best(calls=5) for product in products))
            for name, engine in engines.items():
                self._read[name].append(readers[name].best(calls=1))
                times = _generate(engine, 1, config.prompt, config.output, turn)[0]
                self._first[name].append(times[0])
                self._decode[name].append((times[-1] - times[0]) / (len(times) - 1))
                if config.prefill:
                    self._prefill[name].append(_generate(engine, 1, config.prefill, 1, turn)[0][0])
            tokens = ", ".join(f"{name} {1e3 * seconds[-1]:.2f}" for name, seconds in self._decode.items())
            progress.done(f"{size}, {_turn(turn, config)}: ms a token {tokens}")

    def results(self) -> Iterator[Result]:
        size, prompt, prefill = self.size, self.config.prompt, self.config.prefill
        counted = [name for name, seconds in self._decode.items() if len(seconds) > 1]
        for name in counted:
            moved = self._moved[name]
            least = moved / max(self._read[name])
            yield _result(size, name, "decode", "ms", self._decode[name], lambda s: 1e3 * s, least)
            yield _result(size, name, "read", "GB/s", self._decode[name], lambda s, n=moved: n / s / 1e9, None)
            yield _result(size, name, f"first_of_{prompt}", "ms", self._first[name], lambda s: 1e3 * s, None)
            if len(self._prefill[name]) > 1:
                least = _operations(size, prefill) / max(self._peak)
                rate = lambda s: prefill / s
                yield _result(size, name, f"prefill_{prefill}", "tokens/s", self._prefill[name], rate, least)
        if counted:
            peak, half = max(self._peak), (max(self._peak) - min(self._peak)) / 2
            yield Result(size, "bfloat16", "peak", "Gop/s", peak / 1e9, half / 1e9, None)
        for name in counted:
            rates = self._read[name]
            yield Result(size, name, "limit", "GB/s", max(rates) / 1e9, (max(rates) - min(rates)) / 2e9, None)


class _Together:
    """Requests that come at once: output tokens a second until the last is done, prompts included."""

    def __init__(self, batch: int, config: Config):
        self.batch, self.config = batch, config
        self.parts = 1 + config.rounds + 1
        self._took = {name: [] for name in config.batch_precisions}

    def measure(self, progress: Progress) -> None:
        batch, config = self.batch, self.config
        engines = {
            name: _engine(config.batch_size, name, max_num_seqs=batch, max_num_batched_tokens=config.step_rows,
                          max_model_len=config.prompt + config.output, decode_steps=config.decode_steps)
            for name in config.batch_precisions
        }  # fmt: skip
        where = f"{config.batch_size}, {batch} at once"
        progress.done(f"{where}: {len(engines)} precisions compiled")
        for turn in range(config.rounds + 1):
            for name, engine in engines.items():
                all_times = _generate(engine, batch, config.prompt, config.output, turn)
                self._took[name].append(max(times[-1] for times in all_times))
            rates = ", ".join(f"{name} {batch * config.output / s[-1]:.0f}" for name, s in self._took.items())
            progress.done(f"{where}, {_turn(turn, config)}: tokens/s {rates}")

    def results(self) -> Iterator[Result]:
        rate = lambda s: self.batch * self.config.output / s
        for name, took in self._took.items():
            if len(took) > 1:
                yield _result(self.config.batch_size, name, f"batch_{self.batch}", "tokens/s", took, rate, None)


class _Resident:
    """What a process keeps that serves one request at a time from a checkpoint, and the most that it held before."""

    def __init__(self, size: str, config: Config):
        self.size, self.config = size, config
        self.parts = len(config.precisions)
        self._found: dict[str, Resident] = {}

    def measure(self, progress: Progress) -> None:
        config = self.config
        with tempfile.TemporaryDirectory() as directory:
            family, model = _model(self.size, "bfloat16")
            family.save(model, directory)
            del model
            for name in config.precisions:
                options = _config(
                    name, max_num_seqs=1, max_num_batched_tokens=config.step_rows,
                    max_model_len=config.prompt + config.output, decode_steps=config.decode_steps,
                )  # fmt: skip
                found = self._found[name] = resident(directory, options, prompt=config.prompt, output=config.output)
                progress.done(f"{self.size}, {name}: {found.resident / 1e6:.0f} MB resident")

    def results(self) -> Iterator[Result]:
        for name, found in self._found.items():
            for what, held in (
                ("resident", found.resident),
                ("resident_peak", found.peak),
                ("weights_and_cache", found.weights + found.cache),
            ):
                yield Result(self.size, name, what, "MB", held / 1e6, 0.0, None)


def _turn(turn: int, config: Config) -> str:
    return f"round {turn} of {config.rounds}" if turn else "warming up"


def _engine(size: str, precision: str, **options: Any) -> Engine:
    config = _config(precision, **options)
    model = _model(size, config.dtype)[1]
    if config.weight_dtype is not None:
        model = quantize_weights(model, config.weight_dtype)
    engine = Engine(model, None, config, release=True)
    gc.collect()
    return engine


def _config(precision: str, **options: Any) -> EngineConfig:
    dtype, weight_dtype, activation_dtype = PRECISIONS[precision]
    return EngineConfig(dtype=dtype, weight_dtype=weight_dtype, activation_dtype=activation_dtype, **options)


def _model(size: str, dtype: str) -> tuple[Family, CausalLM]:
    layers, width, heads, kv_heads, mlp, vocabulary = SIZES[size]
    family = find_family("LlamaForCausalLM")
    hf = dict(
        architectures=["LlamaForCausalLM"], num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=mlp, vocab_size=vocabulary, max_position_embeddings=4096,
        rms_norm_eps=1e-5, rope_theta=10_000.0, tie_word_embeddings=True,
    )  # fmt: skip
    return family, family.build(family.config_from_hf(hf), dtype=jnp.dtype(dtype))


def _generate(engine: Engine, batch: int, prompt: int, output: int, seed: int) -> list[list[float]]:
    """For each request the seconds until each of its tokens."""
    times: list[list[float]] = [[] for _ in range(batch)]
    params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
    rng = np.random.default_rng(seed)
    began = time.perf_counter()
    for i, own in enumerate(times):
        tokens = tuple(rng.integers(3, engine.runner.vocab_size, prompt).tolist())
        tell = lambda event, own=own: own.extend([time.perf_counter() - began] * len(event.token_ids))
        engine.submit(Request(f"{i}", tokens, params, listener=tell))
    while engine.step():
        pass
    return times


def _moved_bytes(engine: Engine, config: Config) -> int:
    """What a decoding step must read: the weights, and half of the cache that the request fills last on average."""
    runner = engine.runner
    token = runner.token_bytes
    return runner.weight_bytes + token * (config.prompt + config.output // 2)


def _operations(size: str, tokens: int) -> float:
    """Multiplications and additions of a prompt: projections of every token, causal attention, logits of the last."""
    layers, width, heads, kv_heads, mlp, vocabulary = SIZES[size]
    projections = width * width * (2 + 2 * kv_heads / heads) + 3 * width * mlp
    return 2 * (layers * (tokens * projections + tokens * (tokens + 1) * width) + width * vocabulary)


def _result(
    size: str, name: str, what: str, unit: str, seconds: Sequence[float], figure: Any, least: float | None
) -> Result:
    """Of all rounds but the first; `least` is the time that the limit allows."""
    counted = list(seconds[1:])
    median, ends = statistics.median(counted), [figure(s) for s in (min(counted), max(counted))]
    of_limit = None if least is None else least / median
    return Result(size, name, what, unit, figure(median), abs(ends[1] - ends[0]) / 2, of_limit)


def _print(console: Console, results: Sequence[Result]) -> None:
    kind = environment.cpu()["system.cpu.model"]
    table = Table(title=f"{kind} (measured)", title_justify="left", box=None)
    for head in ("size", "precision", "what"):
        table.add_column(head, no_wrap=True)
    for head in ("median", "±", "of limit"):
        table.add_column(head, justify="right")
    table.add_column("unit")
    for r in results:
        share = "" if r.of_limit is None else f"{100 * r.of_limit:.0f} %"
        table.add_row(r.size, r.precision, r.what, f"{r.value:,.2f}", f"{r.spread:,.2f}", share, r.unit)
    console.print(table)


def _columns(results: Sequence[Result]) -> dict[str, float]:
    columns: dict[str, float] = {}
    for r in results:
        columns[r.column] = r.value
        columns[f"{r.column}_spread"] = r.spread
        if r.of_limit is not None:
            columns[f"{r.column}_of_limit"] = r.of_limit
    return columns
