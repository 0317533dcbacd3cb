import os
import subprocess
import sys
import time

import pytest

from flexjax.hardware import contention
from flexjax.hardware.contention import Contention


@pytest.fixture
def counters(monkeypatch):
    """Two cores whose counters, and this process's own, move as the test says."""
    clock = {"busy": 10.0, "stolen": 1.0, "own": 5.0, "now": 0.0}
    monkeypatch.setattr(contention, "core_seconds", lambda: (clock["busy"], clock["stolen"], 2))
    monkeypatch.setattr(contention, "_own_seconds", lambda: clock["own"])
    monkeypatch.setattr(contention.time, "perf_counter", lambda: clock["now"])

    def run(options=None, **moved: float) -> tuple[str, ...]:
        with Contention(**options or {}) as watch:
            clock["now"] += 5.0
            for name, seconds in moved.items():
                clock[name] += seconds
        return watch.reasons

    return run


def test_one_s_own_work_is_no_disturbance(counters):
    assert counters(busy=9.8, own=9.8) == ()


def test_other_processes_are_seen(counters):
    assert counters(busy=8.0, own=3.0) == ("other processes used 50% of the cores",)
    assert counters(dict(others_expected=True), busy=8.0, own=3.0) == ()
    assert counters(busy=3.3, own=3.0) == ()  # Less than what ticks and the system's own work make of nothing.


def test_stolen_time_is_seen(counters):
    assert counters(stolen=0.5) == ("the hypervisor took 5% of the core time",)
    assert counters(stolen=0.1) == ()


def test_counters_of_other_cores_accuse_nobody(counters):
    assert counters(busy=1.0, own=9.0) == ()


def test_where_the_system_does_not_count_nothing_is_said(monkeypatch):
    monkeypatch.setattr(contention, "core_seconds", lambda: None)
    with Contention() as watch:
        pass
    assert watch.reasons == ()


def test_a_slower_loop_is_seen(monkeypatch):
    monkeypatch.setattr(contention, "core_seconds", lambda: None)
    loops = iter([0.010, 0.0125])
    monkeypatch.setattr(contention, "calibration_loop", lambda: next(loops))
    with Contention(0.010) as watch:
        pass
    assert watch.reasons == ("a fixed loop took 25% longer than on the quiet machine",)


def test_the_counters_are_those_of_the_cores_in_use():
    found = contention.core_seconds()
    if found is None:
        pytest.skip("this system does not count its cores' time")
    busy, stolen, cores = found
    assert cores >= 1 and busy > 0 and stolen >= 0


def test_a_busy_loop_beside_is_seen_on_the_real_machine():
    if contention.core_seconds() is None:
        pytest.skip("this system does not count its cores' time")
    cores = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(1 + cores // 8)]
    try:
        time.sleep(0.2)
        with Contention() as watch:
            time.sleep(1.0)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert any("other processes used" in reason for reason in watch.reasons), watch.reasons
