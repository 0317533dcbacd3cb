"""Devices as a grid with named axes, and the grids to begin with for each chip (meshes.toml)."""

import dataclasses
import functools
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from flexjax.refusal import Refusal

_PRESETS = Path(__file__).with_name("meshes.toml")

Purpose = Literal["serving", "training"]

# Outermost first: neighbours along the last axes are nearest to each other, and talk most.
AXES = ("data", "stage", "fsdp", "expert", "sequence", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices share in each kind of parallelism; one axis may be -1, which takes the rest.

    Raises Refusal at construction for a size that is neither -1 nor positive, or a second -1.
    """

    data: int = 1  # Whole copies of the model, each with requests or examples of its own.
    fsdp: int = 1  # Training: parameters split by rows, gathered layer by layer; examples split too.
    tensor: int = 1  # Heads, feed-forward and vocabulary split; two sums a layer across it.
    sequence: int = 1  # Training: one example's tokens split.
    expert: int = 1  # Experts of a mixture split.
    stage: int = 1  # Training: layers split, a pipeline.

    def __post_init__(self):
        for name, size in self.sizes.items():
            if size != -1 and size < 1:
                raise Refusal(
                    f"MeshConfig.{name} must be a positive number of devices, or -1 for the rest; got {size}."
                )
        if list(self.sizes.values()).count(-1) > 1:
            raise Refusal(f"Only one axis of a mesh can take the rest (-1); got {self}.")

    @property
    def sizes(self) -> dict[str, int]:
        """Axis → size, outermost first."""
        return {axis: getattr(self, axis) for axis in AXES}

    def resolve(self, num_devices: int) -> "MeshConfig":
        """The same with -1 filled in; Refusal unless the sizes multiply to `num_devices`."""
        known = math.prod(size for size in self.sizes.values() if size != -1)
        rest = next((axis for axis, size in self.sizes.items() if size == -1), None)
        if rest is not None and num_devices % known == 0:
            return dataclasses.replace(self, **{rest: num_devices // known})
        if rest is not None or known != num_devices:
            raise Refusal(_misfit(self, known, num_devices))
        return self

    def __str__(self) -> str:
        named = ", ".join(f"{axis}={size}" for axis, size in self.sizes.items() if size != 1)
        return f"MeshConfig({named})"


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of `config`, with every axis of `AXES`, over `devices` (default: all of them).

    Axes are automatic: arrays carry shardings, and XLA adds the collectives. On a TPU the grid follows the links.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = config.resolve(len(devices)).sizes
    grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def replicas(mesh: Mesh) -> list[Mesh]:
    """One mesh for each index of the `data` axis, which has size 1 in it."""
    return [
        Mesh(mesh.devices[i : i + 1], mesh.axis_names, axis_types=mesh.axis_types) for i in range(mesh.shape["data"])
    ]


@functools.cache
def presets() -> Mapping[tuple[str, Purpose, int], MeshConfig]:
    """Every preset, by chip, purpose and number of devices."""
    table = tomllib.loads(_PRESETS.read_text())
    return {
        (chip, purpose, int(size)): MeshConfig(**axes).resolve(int(size))
        for chip, purposes in table.items()
        for purpose, sizes in purposes.items()
        for size, axes in sizes.items()
    }


def preset(chip: str, num_devices: int, purpose: Purpose) -> MeshConfig:
    """The mesh to begin with on so many devices of a chip; Refusal names the sizes that there are."""
    found = presets().get((chip, purpose, num_devices))
    if found is None:
        sizes = [size for c, p, size in presets() if (c, p) == (chip, purpose)]
        if not sizes:
            chips = sorted({c for c, p, _ in presets() if p == purpose})
            raise Refusal(f"No {purpose} mesh is preset for the chip {chip!r}; there are some for {', '.join(chips)}.")
        raise Refusal(
            f"No {purpose} mesh is preset for {num_devices} devices of {chip}; there are some for "
            f"{', '.join(map(str, sizes))}. Give the axes yourself: MeshConfig(tensor=…, data=-1)."
        )
    return found


def _misfit(config: MeshConfig, known: int, num_devices: int) -> str:
    grow = config.data if config.data != -1 else 1
    others = math.prod(size for axis, size in config.sizes.items() if size != -1 and axis != "data")
    ways = []
    if num_devices % others == 0 and num_devices // others != grow:
        ways.append(f"data={num_devices // others}")
    if num_devices % (known // max(config.tensor, 1)) == 0:
        ways.append(f"tensor={num_devices // (known // max(config.tensor, 1))}")
    if known < num_devices:
        ways.append(f"fewer devices: make_mesh(config, jax.devices()[:{known}])")
    ways.append("on CPU, XLA_FLAGS=--xla_force_host_platform_device_count=<n> before JAX starts makes n devices of one")
    return (
        f"The axes of a mesh must multiply to the number of devices; {config} makes {known}"
        f"{' × the rest' if -1 in config.sizes.values() else ''}, there are {num_devices}. Ways out: {'; '.join(ways)}."
    )
