"""What else the machine did during a measured run: signs that figures are those of a contended machine."""

import os
import time
from pathlib import Path
from typing import Self

_STAT = Path("/proc/stat")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01

# Of the time of the cores that this process may use. Ticks of 10 ms make a run of five seconds uncertain by 0.4 %.
_MOST_STOLEN = 0.02
_MOST_BY_OTHERS = 0.05  # An idle Linux machine stays below 1 %; a busy loop takes 50 % of two cores.
_MOST_SLOWER = 0.10  # Of the fixed loop; on a quiet virtual machine its best of eight varies by 3 %.
_TICKS_UNCERTAIN = 2  # A core's counter may be so many ticks behind.
_LOOP = 100_000


def calibration_loop() -> float:
    """Seconds of a fixed loop of one thread, the best of eight: 50 ms together, so that a moment does not count."""
    return min(_loop() for _ in range(8))


def _loop() -> float:
    began = time.perf_counter()
    total = 0
    for i in range(_LOOP):
        total += i * i
    return time.perf_counter() - began


class Contention:
    """Watches the machine while the context is open.

        with Contention(quiet_loop_s) as watch:
            work()
        watch.reasons  # Empty where nothing else happened.

    - Time that a hypervisor took from the cores that this process may use ("steal").
    - Those cores' use by other processes, unless they belong to what is measured (`others_expected`).
    - The fixed loop before or after, against `quiet_loop_s`, what it takes undisturbed; None leaves it out.

    Where the system does not count (not Linux), or counts what is not these cores, a sign is left out.
    """

    def __init__(self, quiet_loop_s: float | None = None, *, others_expected: bool = False):
        self._quiet_loop_s = quiet_loop_s
        self._others_expected = others_expected
        self.reasons: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        self._loop_s = calibration_loop() if self._quiet_loop_s else 0.0
        self._before, self._own, self._start = core_seconds(), _own_seconds(), time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        elapsed = time.perf_counter() - self._start
        own, after = _own_seconds() - self._own, core_seconds()
        self.reasons = (*self._cores(elapsed, own, after), *self._slower())

    def _cores(self, elapsed: float, own: float, after: tuple[float, float, int] | None) -> tuple[str, ...]:
        if self._before is None or after is None or not elapsed:
            return ()
        busy, stolen, cores = after[0] - self._before[0], after[1] - self._before[1], after[2]
        uncertain = _TICKS_UNCERTAIN * _TICK_S * cores
        found = []
        if stolen - uncertain > _MOST_STOLEN * elapsed * cores:
            found.append(f"the hypervisor took {stolen / elapsed / cores:.0%} of the core time")
        # Counters that hold less than this process used are those of other cores.
        others = busy - own
        if not self._others_expected and others - uncertain > _MOST_BY_OTHERS * elapsed * cores:
            found.append(f"other processes used {others / elapsed / cores:.0%} of the cores")
        return tuple(found)

    def _slower(self) -> tuple[str, ...]:
        if not self._quiet_loop_s:
            return ()
        worst = max(self._loop_s, calibration_loop()) / self._quiet_loop_s - 1
        return (f"a fixed loop took {worst:.0%} longer than on the quiet machine",) if worst > _MOST_SLOWER else ()


def core_seconds() -> tuple[float, float, int] | None:
    """(busy, stolen) seconds since the machine started, over the cores that this process may use, and their number;
    None where the system does not tell."""
    if not _STAT.exists() or not hasattr(os, "sched_getaffinity"):
        return None
    usable = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    rows = [line.split() for line in _STAT.read_text().splitlines()]
    # user nice system idle iowait irq softirq steal guest guest_nice; guests are in user and nice already.
    ticks = [[int(field) for field in row[1:9]] for row in rows if row and row[0] in usable and len(row) > 8]
    if not ticks:
        return None
    busy = sum(sum(row[:3]) + row[5] + row[6] for row in ticks)
    return _TICK_S * busy, _TICK_S * sum(row[7] for row in ticks), len(ticks)


def _own_seconds() -> float:
    """Of processor time that this process and its ended children used."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
