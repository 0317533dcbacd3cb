"""Energy of a stretch of work: read from a meter where the machine has one, else estimated."""

import contextlib
import dataclasses
import functools
import io
import logging
import time
from typing import Any, Literal, Self

from flexjax.hardware import chips


@dataclasses.dataclass(frozen=True)
class Energy:
    joules: float
    kind: Literal["measured", "estimated", "compiled"]
    meter: str  # "zeus: RAPL", "zeus: GPU counter + RAPL", or what the estimate rests on.


class EnergyMeter:
    """Measures the energy used while the context is open.

        with EnergyMeter() as meter:
            work()
        meter.energy  # Energy, or None where nothing is known of the chip's power

    A GPU is read by NVML or AMD SMI and a CPU package by RAPL (both through zeus, the extra
    `energy`); these count everything that runs on the device. Otherwise the energy is estimated from
    the chip table: for a CPU, cores x (idle + utilisation x (load - idle)) watts, the utilisation
    being this process's own CPU time; for an accelerator, its board limit: an upper bound.
    """

    def __init__(self, running: chips.Running | None = None):
        self._running = running or chips.detect()
        self.energy: Energy | None = None

    def __enter__(self) -> Self:
        self._monitor, self._meter = _zeus(self._running.chip.platform if self._running.chip else "")
        if self._monitor:
            self._monitor.begin_window("flexjax", sync_execution=False)
        self._cpu_start, self._start = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        seconds = time.perf_counter() - self._start
        cpu_seconds = time.process_time() - self._cpu_start
        if self._monitor:
            read = self._monitor.end_window("flexjax", sync_execution=False)
            joules = sum((read.gpu_energy or {}).values()) + sum((read.cpu_energy or {}).values())
            self.energy = Energy(float(joules), "measured", self._meter)
        else:
            self.energy = estimate(self._running, seconds, cpu_seconds)


def estimate(running: chips.Running, seconds: float, cpu_seconds: float) -> Energy | None:
    """Energy by the chip table's watts; None where the table has none for this chip."""
    chip = running.chip
    if chip is None or chip.load_watts is None:
        return None
    if chip.unit == "core" and chip.idle_watts is not None:
        utilisation = min(cpu_seconds / (seconds * running.units), 1.0) if seconds else 0.0
        watts = chip.idle_watts + utilisation * (chip.load_watts - chip.idle_watts)
        basis = f"{utilisation:.0%} busy"
    else:
        watts, basis = chip.load_watts, "board limit, an upper bound"
    plural = "s" if running.units > 1 else ""
    meter = f"{running.units} {chip.unit}{plural} at {watts:.3g} W ({basis}; chip table: {chip.name})"
    return Energy(watts * running.units * seconds, "estimated", meter)


@functools.cache
def _zeus(platform: str) -> tuple[Any, str]:
    """A zeus monitor that can read what runs on `platform`, and its meters' names; (None, "") without one."""
    if platform not in ("cpu", "gpu"):
        return None, ""
    logging.getLogger("zeus").setLevel(logging.ERROR)  # It warns at length of every meter that is missing.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            from zeus.device import get_cpus, get_gpus  # pyright: ignore[reportMissingImports] (an extra)
            from zeus.device.exception import ZeusBaseCPUError, ZeusBaseGPUError  # pyright: ignore[reportMissingImports] (an extra)
            from zeus.monitor import ZeusMonitor  # pyright: ignore[reportMissingImports] (an extra)
        except ImportError:
            return None, ""
        try:
            cpus = list(range(len(get_cpus())))
        except ZeusBaseCPUError:
            cpus = []
        try:
            gpus = list(range(len(get_gpus()))) if platform == "gpu" else []
        except ZeusBaseGPUError:
            gpus = []
        if not (gpus if platform == "gpu" else cpus):
            return None, ""
        meter = "zeus: " + " + ".join(name for name, found in (("GPU counter", gpus), ("RAPL", cpus)) if found)
        return ZeusMonitor(gpu_indices=gpus, cpu_indices=cpus), meter
