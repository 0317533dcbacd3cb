"""Meshes: sizes that must fit the devices, and presets that do."""

import jax
import pytest

from flexjax.hardware import chips
from flexjax.hardware.mesh import AXES, MeshConfig, make_mesh, preset, presets, replicas


def test_one_axis_takes_the_rest():
    assert MeshConfig(data=2, tensor=-1).resolve(8) == MeshConfig(data=2, tensor=4)
    assert MeshConfig(data=2, tensor=4).resolve(8) == MeshConfig(data=2, tensor=4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(tensor=4), r"MeshConfig\(tensor=4\) makes 4, there are 8. Ways out: data=2; tensor=8; fewer"),
        (MeshConfig(data=-1, tensor=3), "makes 3 × the rest, there are 8. Ways out: tensor=8;"),
        (MeshConfig(data=4, fsdp=4), "makes 16, there are 8. Ways out: data=2;"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused_with_ways_out(config, message):
    with pytest.raises(ValueError, match=message):
        config.resolve(8)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [(dict(tensor=0), "tensor must be a positive .* got 0"), (dict(data=-1, fsdp=-1), "Only one axis")],
)
def test_sizes_out_of_range_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        MeshConfig(**sizes)


def test_the_mesh_of_one_device_has_every_axis():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert mesh.axis_names == AXES and mesh.size == 1
    assert [part.shape for part in replicas(mesh)] == [mesh.shape]


def test_every_preset_is_of_a_known_chip_and_fits_its_devices():
    for (chip, purpose, size), config in presets().items():
        assert chip in chips.table()
        assert config.resolve(size) == config
        unused = {"serving": ("fsdp", "sequence", "stage"), "training": ()}[purpose]
        assert all(getattr(config, axis) == 1 for axis in unused)
    assert preset("v5e", 8, "serving") == MeshConfig(tensor=8)


@pytest.mark.parametrize("purpose", ["serving", "training"])
def test_every_chip_has_presets(purpose):
    for chip in chips.table():
        # Of one device, half a host and a host; TPUs are rented one, four or eight at a time, and a 7x chip is two.
        wanted = {2, 8} if chip == "7x" else {1, 4, 8}
        assert wanted <= {size for c, p, size in presets() if (c, p) == (chip, purpose)}, chip


@pytest.mark.parametrize(
    ("chip", "size", "message"),
    [("v5e", 6, "6 devices of v5e; there are some for 1, 4, 8"), ("v9", 8, "'v9'; there are some for .*v5e")],
)
def test_a_preset_that_is_not_there_names_those_that_are(chip, size, message):
    with pytest.raises(ValueError, match=message):
        preset(chip, size, "serving")
