import sys
import time
import types

import pytest

from flexjax.hardware import chips, energy

CPU = chips.Running("cpu", 4, chips.find("cpu"))


def test_a_cpu_estimate_lies_between_idle_and_load():
    chip = chips.find("cpu")
    idle, half, full = (energy.estimate(CPU, 10.0, cpu) for cpu in (0.0, 20.0, 400.0))
    assert idle.joules == pytest.approx(chip.idle_watts * 4 * 10)
    assert full.joules == pytest.approx(chip.load_watts * 4 * 10)
    assert half.joules == pytest.approx((idle.joules + full.joules) / 2)
    assert {e.kind for e in (idle, half, full)} == {"estimated"}
    assert "cpu" in half.meter and "50% busy" in half.meter


def test_an_accelerator_without_a_meter_counts_its_limit():
    found = energy.estimate(chips.Running("NVIDIA H100 80GB HBM3", 2, chips.find("h100")), 3.0, 1.0)
    assert found.joules == 2 * 700 * 3 and found.kind == "estimated" and "upper bound" in found.meter


def test_nothing_is_guessed_for_a_chip_without_watts():
    assert energy.estimate(chips.Running("TPU v5 lite", 1, chips.find("v5e")), 1.0, 1.0) is None
    assert energy.estimate(chips.Running("some chip", 1, None), 1.0, 1.0) is None


@pytest.fixture
def no_meter(monkeypatch):
    monkeypatch.setattr(energy, "_counters", lambda platform: ((), ""))


def test_work_takes_more_energy_than_as_much_rest(no_meter):
    with energy.EnergyMeter(CPU) as meter:
        began = time.perf_counter()
        while time.perf_counter() < began + 0.2:
            sum(range(1000))
        between = time.perf_counter()
        time.sleep(0.2)
        end = time.perf_counter()
    work, rest = meter.between(began, between), meter.between(between, between + 0.2)
    # One of four cores at work; the rest has no more than the samples' own time, and what lies 20 ms before it.
    chip = chips.find("cpu")
    assert work.joules == pytest.approx(0.2 * (4 * chip.idle_watts + chip.load_watts - chip.idle_watts), rel=0.15)
    assert rest.joules == pytest.approx(0.2 * 4 * chip.idle_watts, rel=0.15)
    assert meter.between(began, end).joules == pytest.approx(work.joules + rest.joules, rel=0.05)


def test_a_window_is_cut_out_of_a_real_meter_s_samples(monkeypatch):
    start = time.perf_counter()
    watts = lambda: 50.0 * (time.perf_counter() - start)  # A machine that takes 50 W,
    fixed = lambda: 7.0  # and a device that takes none.
    monkeypatch.setattr(energy, "_counters", lambda platform: ((watts, fixed), "zeus: RAPL"))
    with energy.EnergyMeter(CPU) as meter:
        time.sleep(0.3)
    found = meter.between(start + 0.1, start + 0.2)
    assert (found.kind, found.meter) == ("measured", "zeus: RAPL")
    assert found.joules == pytest.approx(5.0, rel=1e-2)


def test_a_meter_s_own_samples_cost_little(no_meter):
    before = time.process_time()
    with energy.EnergyMeter(CPU):
        time.sleep(0.5)
    assert time.process_time() - before < 0.02  # Seconds; two per mille are usual.


def test_what_zeus_counts_becomes_joules(monkeypatch):
    class Devices:
        def __init__(self, millijoules):
            self._millijoules = millijoules

        def __len__(self):
            return len(self._millijoules)

        def get_total_energy_consumption(self, index):
            return self._millijoules[index]

    class Missing(Exception): ...

    packages = [types.SimpleNamespace(cpu_mj=2000.0, dram_mj=None), types.SimpleNamespace(cpu_mj=500.0, dram_mj=9.0)]
    devices = types.SimpleNamespace(get_cpus=lambda: Devices(packages), get_gpus=lambda: Devices([4000]))
    monkeypatch.setitem(sys.modules, "zeus", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "zeus.device", devices)
    errors = types.SimpleNamespace(ZeusBaseCPUError=Missing, ZeusBaseGPUError=Missing)
    monkeypatch.setitem(sys.modules, "zeus.device.exception", errors)
    read = energy._counters.__wrapped__
    counters, meter = read("cpu")
    assert [count() for count in counters] == [2.0, 0.5] and meter == "zeus: RAPL"
    counters, meter = read("gpu")
    assert [count() for count in counters] == [4.0, 2.0, 0.5] and meter == "zeus: GPU counter + RAPL"

    def missing():
        raise Missing

    devices.get_gpus = missing
    assert read("gpu") == ((), "")  # A CPU's meter says nothing of a GPU.
    devices.get_cpus = missing
    assert read("cpu") == ((), "")


def test_probing_for_a_meter_prints_nothing(capfd):
    energy._counters.cache_clear()
    energy._counters("cpu")
    assert capfd.readouterr() == ("", "")


def test_a_tpu_has_no_meter():
    assert energy._counters("tpu") == ((), "")
