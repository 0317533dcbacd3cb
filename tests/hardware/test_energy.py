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


def test_the_meter_measures_work_in_more_time_with_more_energy(monkeypatch):
    monkeypatch.setattr(energy, "_zeus", lambda platform: (None, ""))
    with energy.EnergyMeter(CPU) as short:
        pass
    with energy.EnergyMeter(CPU) as long:
        sum(range(2_000_000))
    assert 0 < short.energy.joules < long.energy.joules


def test_a_real_meter_is_preferred_and_labelled(monkeypatch):
    class Monitor:
        def begin_window(self, name, sync_execution):
            assert not sync_execution

        def end_window(self, name, sync_execution):
            return types.SimpleNamespace(gpu_energy={0: 5.0}, cpu_energy={0: 2.0, 1: 3.0})

    monkeypatch.setattr(energy, "_zeus", lambda platform: (Monitor(), "zeus: RAPL"))
    with energy.EnergyMeter(CPU) as meter:
        pass
    assert meter.energy == energy.Energy(10.0, "measured", "zeus: RAPL")


def test_probing_for_a_meter_prints_nothing(capfd):
    energy._zeus.cache_clear()
    energy._zeus("cpu")
    assert capfd.readouterr() == ("", "")


def test_a_tpu_has_no_meter():
    assert energy._zeus("tpu") == (None, "")
