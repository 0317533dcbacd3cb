import datetime

import pytest

from flexjax.hardware import chips


def test_the_table_holds_the_chips_that_the_suite_speaks_of():
    expected = {"v4", "v5e", "v5p", "v6e", "7x", "a100", "h100", "h200", "b200", "l4", "rtx4090", "mi300x", "cpu"}
    assert expected <= set(chips.table())


@pytest.mark.parametrize("chip", chips.table().values(), ids=chips.table())
def test_every_figure_is_positive_sourced_and_dated(chip):
    figures = [chip.memory_gib, chip.memory_gb_per_s, chip.link_gb_per_s, chip.idle_watts, chip.load_watts]
    assert all(x > 0 for x in [*figures, *chip.peak.values()] if x is not None)
    assert chip.source and chip.device_kinds
    if chip.idle_watts and chip.load_watts:
        assert chip.idle_watts < chip.load_watts
    if chip.price:
        assert chip.price.usd_per_hour > 0 and chip.price.source
        assert datetime.date.fromisoformat(chip.price.date) <= datetime.datetime.now(datetime.UTC).date()


@pytest.mark.parametrize("chip", chips.table().values(), ids=chips.table())
def test_fewer_bits_are_never_slower(chip):
    halves = [("float32", "tf32"), ("tf32", "bfloat16"), ("bfloat16", "int8"), ("bfloat16", "float8"), ("int8", "int4")]
    for wide, narrow in halves:
        if wide in chip.peak and narrow in chip.peak:
            assert chip.peak[narrow] >= chip.peak[wide]


def test_types_without_a_unit_are_absent():
    assert "float8" not in chips.find("v5e").peak  # Emulated there.
    assert "float8" not in chips.find("a100").peak


def test_device_kinds_name_one_chip_each():
    kinds = [kind for chip in chips.table().values() for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))
    v5e = chips.of_device_kind("TPU v5 lite")
    assert v5e is not None and v5e.name == "v5e"
    assert chips.of_device_kind("NVIDIA H100 PCIe") is None  # Another chip than the SXM one.


def test_the_table_agrees_with_an_independent_one(shared_data):
    import csv

    ours = {"H100-SXM-80GB": "h100", "H200-SXM-141GB": "h200", "A100-SXM-80GB": "a100", "L4": "l4", "TPU-v5e": "v5e"}
    with open(shared_data / "mlperf" / "accelerator_specs_curated.csv") as file:
        for row in csv.DictReader(file):
            if name := ours.get(row["name"]):
                chip = chips.find(name)
                assert chip.peak["bfloat16"] == pytest.approx(float(row["fp16_tflops"]), rel=0.01)
                assert chip.memory_gb_per_s == pytest.approx(float(row["mem_bw_gbs"]), rel=0.01)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="'v5f'.*v5"):
        chips.find("v5f")


def test_this_machine_is_detected():
    running = chips.detect()
    assert running.units >= 1
    if running.device_kind == "cpu":
        assert running.chip is chips.find("cpu") and running.units == chips.cores()
