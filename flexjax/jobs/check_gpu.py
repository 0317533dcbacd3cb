"""Checks the values of every kernel on this GPU, and times them against what it copies and multiplies at most."""

import csv
import dataclasses
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flexjax import kernels
from flexjax.hardware import chips
from flexjax.kernels import registry
from flexjax.kernels.case import Case, can_serve
from flexjax.micro import Loop, Probe, Reading, limits, measure

HOME = Path(kernels.__file__).parent
BODY = "triton_gpu"
MOST_ERROR = {"float32": 1e-4, "bfloat16": 2e-2}  # Of the largest value.
COPY_MIB = 1024
LAYERS = 4  # Calls of a step, whose weights together do not stay in a cache.


@dataclasses.dataclass(frozen=True)
class Config:
    ops: tuple[str, ...] = ()  # Folders of flexjax/kernels; empty takes all that have a GPU body.
    rounds: int = 7  # Of timing: everything in turn, this often; the median counts.
    round_s: float = 0.05  # Seconds of a round that one body fills.

    def __post_init__(self):
        if unknown := set(self.ops) - set(gpu_ops()):
            raise ValueError(f"ops can be {', '.join(gpu_ops())}; got {', '.join(sorted(unknown))}.")


@dataclasses.dataclass(frozen=True)
class Checked:
    """A body on a named shape beside the formula; `error` is of the largest value, and None where it does not serve."""

    op: str
    shape: str
    error: float | None
    allowed: float
    reason: str = ""

    @property
    def wrong(self) -> bool:
        return self.error is not None and not self.error <= self.allowed  # NaN is wrong.


def gpu_ops() -> list[str]:
    return sorted(path.parent.name for path in HOME.glob(f"*/{BODY}.py"))


def run(config: Config, workdir: Path) -> int:
    console = Console()
    if registry.platform() != "gpu":
        console.print(f"check_gpu needs an NVIDIA GPU; JAX runs on {registry.platform()} here.")
        return 2
    ops = config.ops or tuple(gpu_ops())
    checked = [each for op in track(ops, "Checking values") for each in check(op)]
    copies, products = _limits(config)
    timed = [each for op in track(ops, "Timing") for each in _time(op, config)]
    _print(console, checked, timed, copies, products)
    _write(workdir / "gpu.csv", checked, timed, copies, products)
    console.print(f"Figures in {workdir / 'gpu.csv'}.", style="dim", markup=False)
    return 1 if any(each.wrong for each in checked) else 0


def check(op: str, body: str = BODY) -> Iterator[Checked]:
    """The body against the formula on every named shape of the op, kernels compiled as they are served."""
    specs = importlib.import_module(f"flexjax.kernels.{op}.arg_specs").ARG_SPECS
    call = getattr(importlib.import_module(f"flexjax.kernels.{op}"), op)
    for shape, spec in specs.items():
        allowed, options = MOST_ERROR[spec.dtype], getattr(spec, "options", {})
        arguments = spec.arguments()
        served, formula = (functools.partial(call, body=each, **options) for each in (body, "base"))
        if reason := can_serve(served, arguments):
            yield Checked(op, shape, None, allowed, reason)
            continue
        got, want = (jax.tree.leaves(jax.jit(each)(*arguments)) for each in (served, formula))
        yield Checked(op, shape, max(map(_error, got, want)), allowed)


def _error(got: Any, want: Any) -> float:
    got, want = (np.asarray(jnp.asarray(each).astype(jnp.float32)) for each in (got, want))
    apart = np.subtract(got, want, where=got != want, out=np.zeros_like(want))  # Equal infinities are equal.
    largest = float(np.max(np.abs(want), where=np.isfinite(want), initial=1e-30))
    return float(np.max(np.abs(apart))) / largest


def _limits(config: Config) -> tuple[float, float]:
    """Bytes a second that are copied, operations a second of bfloat16 products."""
    machine = limits(["bfloat16"], config.rounds, config.round_s, [COPY_MIB])
    return machine.copy[COPY_MIB], machine.products["bfloat16"]


def _time(op: str, config: Config) -> Iterator[tuple[Case, Reading]]:
    """Each serving shape by this body and by XLA's, round by round."""
    for cases in _serving(op):
        cases = [case for case in cases if can_serve(case.step, case.make()) is None]
        probes = [Probe(case.body, op, 0, Loop(case.step, *case.make())) for case in cases]
        yield from zip(cases, measure(probes, config.rounds, config.round_s), strict=True)


def _serving(op: str) -> Iterator[list[Case]]:
    bench = importlib.import_module(f"flexjax.kernels.{op}.bench")
    for shape, spec in bench.SERVING_SPECS.items():
        yield [bench.case(shape, spec, body, LAYERS) for body in (BODY, "xla")]


def _print(console: Console, checked, timed, copies: float, products: float) -> None:
    console.print(f"{chips.detect().device_kind} (measured): copies {copies / 1e9:,.0f} GB/s, bfloat16 products "
                  f"{products / 1e12:,.0f} TFLOP/s", markup=False)  # fmt: skip
    for each in checked:
        if each.wrong:
            text = f"• {each.op} {each.shape}: off by {each.error:.2g} of the largest value, {each.allowed:g} allowed"
            console.print(text, style="bold red", markup=False)
        elif each.error is None:
            console.print(f"• {each.op} {each.shape}: not served, {each.reason}", markup=False)
    console.print(f"{sum(each.error is not None for each in checked)} shapes checked, "
                  f"{sum(each.wrong for each in checked)} wrong")  # fmt: skip
    table = Table(box=None)
    for head in ("op", "shape", "body"):
        table.add_column(head)
    for head in ("µs", "of copies", "of products"):
        table.add_column(head, justify="right")
    for case, reading in timed:
        seconds = reading.median / LAYERS
        shares = (case.moved_bytes / seconds / copies, case.operations / seconds / products)
        table.add_row(case.op, case.shape, case.body, f"{1e6 * seconds:,.1f}", *(f"{100 * s:.0f} %" for s in shares))
    console.print(table)


def _write(path: Path, checked, timed, copies: float, products: float) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            "device op shape body error allowed median_s low_s high_s moved_bytes operations copy_bytes_per_s "
            "bfloat16_operations_per_s".split()
        )
        device = chips.detect().device_kind
        for each in checked:
            error = each.reason if each.error is None else each.error
            writer.writerow([device, each.op, each.shape, BODY, error, each.allowed, *[""] * 5, copies, products])
        for case, r in timed:
            seconds = [each / LAYERS for each in (r.median, r.low, r.high)]
            work = (case.moved_bytes, case.operations, copies, products)
            writer.writerow([device, case.op, case.shape, case.body, "", "", *seconds, *work])
