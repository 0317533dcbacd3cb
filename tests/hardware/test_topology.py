import pytest

from flexjax.hardware import chips, topology

TPUS = ("v4", "v5e", "v5p", "v6e", "7x")
GPUS = ("a100", "h100", "h200", "b200")

needs_libtpu = pytest.mark.skipif(
    topology.missing(chips.find("v5e")) is not None, reason=str(topology.missing(chips.find("v5e")))
)
needs_cuda = pytest.mark.skipif(
    topology.missing(chips.find("h100")) is not None, reason=str(topology.missing(chips.find("h100")))
)


def test_the_chips_that_the_suite_compiles_for_can_be_described():
    assert set(topology.describable()) == {*TPUS, *GPUS}


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "shape", "devices"),
    [
        ("v4", "2x2x1", 4),  # A chip's two cores are one device.
        ("v5e", "1x1", 1),
        ("v5e", "2x4", 8),
        ("v5p", "2x2x2", 8),
        ("v6e", "4x4", 16),
        ("7x", "2x2x1", 8),  # Two devices a chip.
    ],
)
def test_a_tpu_grid_has_its_devices(name, shape, devices):
    chip = chips.find(name)
    found = topology.devices(chip, shape)
    assert len(found) == devices
    assert {d.device_kind for d in found} <= set(chip.device_kinds)


@needs_cuda
@pytest.mark.parametrize("name", GPUS)
def test_gpus_of_one_host_and_of_two(name):
    chip = chips.find(name)
    assert [d.process_index for d in topology.devices(chip, "2")] == [0, 0]
    assert [d.process_index for d in topology.devices(chip, "2x1")] == [0, 1]
    assert {d.device_kind for d in topology.devices(chip, "1")} <= set(chip.device_kinds)


@needs_libtpu
@pytest.mark.parametrize(("name", "shape"), [("v5e", "3x3"), ("v5e", "2x2x2"), ("v5p", "2x2")])
def test_a_grid_that_is_not_built_is_refused_with_what_is(name, shape):
    with pytest.raises(ValueError, match=rf"is built as a grid of \d dimensions, in hosts of .* got {shape}"):
        topology.devices(chips.find(name), shape)


@pytest.mark.parametrize("shape", ["", "8x", "2*4", "x4", "0x4", "all"])
def test_what_is_no_topology_is_refused(shape):
    with pytest.raises(ValueError, match="A topology is sizes with x between"):
        topology.devices(chips.find("v5e"), shape)


def test_a_chip_without_a_described_compiler_names_those_with_one():
    with pytest.raises(ValueError, match="l4 has no compiler.*v5e"):
        topology.devices(chips.find("l4"), "1")


@pytest.mark.parametrize("name", ["v5e", "h100"])
def test_a_missing_compiler_is_named_with_the_extra_that_brings_it(name, monkeypatch):
    monkeypatch.setattr(topology, "_installed", lambda module: False)
    with pytest.raises(ValueError, match=r"is not installed\. .*flexjax\[virtual\]"):
        topology.devices(chips.find(name), "1x1" if name == "v5e" else "1")
