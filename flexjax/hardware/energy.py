"""Energy of a stretch of work: read from a meter where the machine has one, else estimated."""

import contextlib
import dataclasses
import functools
import io
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np

from flexjax.hardware import chips


@dataclasses.dataclass(frozen=True)
class Energy:
    joules: float
    kind: Literal["measured", "estimated", "compiled"]
    meter: str  # "zeus: RAPL", "zeus: GPU counter + RAPL", or what the estimate rests on.


# Between two samples of a meter. Of a window of five seconds each end is uncertain by 0.4 %.
_EVERY_S = {"estimated": 0.02, "measured": 0.1}  # A counter of the machine takes longer to read than a process's clock.


class EnergyMeter:
    """Samples the energy used while the context is open; any window within it can be asked for afterwards.

        with EnergyMeter() as meter:
            began = time.perf_counter()
            work()
            end = time.perf_counter()
        meter.between(began, end)  # Energy, or None where nothing is known of the chip's power

    A GPU is read by NVML or AMD SMI and a CPU package by RAPL (both through zeus, the extra
    `energy`); these count everything that runs on the device. Otherwise the energy is estimated from
    the chip table: for a CPU, cores x (idle + utilisation x (load - idle)) watts, the utilisation
    being this process's own CPU time; for an accelerator, its board limit: an upper bound.
    """

    def __init__(self, running: chips.Running | None = None):
        self._running = running or chips.detect()
        self._times: list[float] = []
        self._counts: list[float] = []  # Joules of the counters, else seconds of processor time.

    def __enter__(self) -> Self:
        counters, self._meter = _counters(self._running.chip.platform if self._running.chip else "")
        self._measured = bool(counters)
        self._read = (lambda: sum(read() for read in counters)) if counters else time.process_time
        self._ended = threading.Event()
        self._sample()
        self._thread = threading.Thread(target=self._run, name="flexjax-energy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()

    def between(self, start: float, end: float) -> Energy | None:
        """The energy used from `start` to `end` (`time.perf_counter()`), interpolated between samples; what lies
        outside the context is not counted."""
        count = float(np.diff(np.interp([start, end], self._times, self._counts))[0])
        if self._measured:
            return Energy(count, "measured", self._meter)
        return estimate(self._running, end - start, count)

    def _run(self) -> None:
        every = _EVERY_S["measured" if self._measured else "estimated"]
        while not self._ended.wait(every):
            self._sample()

    def _sample(self) -> None:
        count = self._read()
        self._times.append(time.perf_counter())
        self._counts.append(count)


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
def _counters(platform: str) -> tuple[tuple[Callable[[], float], ...], str]:
    """What reads the joules that the devices of `platform` have used so far, and the meters' names; ((), "") without a
    meter. Where a GPU has none, the CPU's is no substitute."""
    if platform not in ("cpu", "gpu"):
        return (), ""
    logging.getLogger("zeus").setLevel(logging.ERROR)  # It warns at length of every meter that is missing.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            from zeus.device import get_cpus, get_gpus  # pyright: ignore[reportMissingImports] (an extra)
            from zeus.device.exception import ZeusBaseCPUError, ZeusBaseGPUError  # pyright: ignore[reportMissingImports] (an extra)
        except ImportError:
            return (), ""
        try:
            found = get_cpus()
            cpus = [functools.partial(_cpu_joules, found, index) for index in range(len(found))]
        except ZeusBaseCPUError:
            cpus = []
        try:
            found = get_gpus() if platform == "gpu" else ()
            gpus = [functools.partial(_gpu_joules, found, index) for index in range(len(found))]
        except ZeusBaseGPUError:
            gpus = []
    if not (gpus if platform == "gpu" else cpus):
        return (), ""
    meter = "zeus: " + " + ".join(name for name, found in (("GPU counter", gpus), ("RAPL", cpus)) if found)
    return (*gpus, *cpus), meter


def _cpu_joules(cpus: Any, index: int) -> float:
    """Of one package. zeus gives millijoules; memory has a counter of its own, which is not there everywhere."""
    return cpus.get_total_energy_consumption(index).cpu_mj / 1e3


def _gpu_joules(gpus: Any, index: int) -> float:
    return gpus.get_total_energy_consumption(index) / 1e3
