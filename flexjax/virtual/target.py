"""What is compiled, and for what: a model without weights, the engine's steps, described devices."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from flexjax.engine import EngineConfig, pages_of
from flexjax.engine.device import StepProgram, suited
from flexjax.families import Family
from flexjax.hardware import chips, topology
from flexjax.hardware.chips import Chip
from flexjax.hardware.mesh import MeshConfig, make_mesh, preset, replicas
from flexjax.hardware.roofline import Limits
from flexjax.model import CausalLM
from flexjax.nn import layout_of, quantize_weights

MOST_DEVICES = 256  # Of the larger grids that are tried.
# Without a GPU there is nothing to time candidate kernels on.
_DESCRIBED_OPTIONS: Mapping[str, dict[str, Any]] = {"gpu": {"xla_gpu_autotune_level": 0}}


@dataclasses.dataclass(frozen=True)
class Target:
    """So many described chips, cut into replicas of the model that share a mesh each; training is one replica."""

    chip: Chip
    topology: str
    num_devices: int
    mesh: Mesh  # Of one replica.
    num_replicas: int
    limits: Limits  # Of one device.

    @classmethod
    def of(cls, chip_name: str, topology_name: str, mesh: MeshConfig | None, dtype: str) -> "Target":
        """`mesh` None takes the serving preset of so many chips."""
        chip = chips.find(chip_name)
        devices = topology.devices(chip, topology_name)
        config = mesh or preset(chip.name, len(devices), "serving")
        parts = replicas(make_mesh(config, devices))
        return cls(chip, topology_name, len(devices), parts[0], len(parts), Limits.of(chip, dtype))

    @classmethod
    def for_training(cls, chip_name: str, topology_name: str, mesh: MeshConfig | None) -> "Target":
        """One mesh of all chips; None takes their training preset."""
        chip = chips.find(chip_name)
        devices = topology.devices(chip, topology_name)
        config = mesh or preset(chip.name, len(devices), "training")
        return cls(chip, topology_name, len(devices), make_mesh(config, devices), 1, Limits.of(chip, "bfloat16"))

    @property
    def compiler_options(self) -> dict[str, Any] | None:
        return _DESCRIBED_OPTIONS.get(self.chip.platform)

    def larger(self) -> Iterator[tuple[str, int]]:
        """Grids of twice, four times … as many chips, and their devices; the shortest side doubles."""
        sizes = [int(size) for size in self.topology.split("x")]
        per_chip = self.num_devices // math.prod(sizes)
        while math.prod(sizes) * per_chip * 2 <= MOST_DEVICES:
            shortest = len(sizes) - 1 if self.chip.platform == "gpu" else sizes.index(min(sizes))
            sizes[shortest] *= 2
            yield "x".join(map(str, sizes)), math.prod(sizes) * per_chip

    def __str__(self) -> str:
        axes = {axis: size for axis, size in self.mesh.shape.items() if size > 1}
        split = f"tensor parallel over {self.mesh.size}"
        if axes.keys() - {"tensor"}:
            split = " × ".join(f"{axis} {size}" for axis, size in axes.items())
        copies = f", {self.num_replicas} replicas" if self.num_replicas > 1 else ""
        return f"{self.num_devices} × {self.chip.full_name} ({self.topology}), {split}{copies}"


def abstract_model(family: Family, hf: Mapping[str, Any], engine: EngineConfig, platform: str) -> CausalLM:
    """The model with no weights, in the form in which the engine would run it there."""
    config = family.config_from_hf(dict(hf))

    def build() -> CausalLM:
        model = family.build(config, dtype=jnp.dtype(engine.dtype))
        if engine.weight_dtype is not None:
            model = quantize_weights(model, engine.weight_dtype)
        return suited(model, platform)

    return nnx.eval_shape(build)


def program_for(model: CausalLM, engine: EngineConfig, target: Target, batch: int, context: int) -> StepProgram:
    """The engine's steps for up to `batch` sequences of `context` tokens, all of which the cache holds at once."""
    pages = -(-context // engine.page_size)
    windows = layout_of(model).windows
    sizes = dataclasses.replace(
        engine,
        max_num_seqs=batch,
        max_model_len=context,
        max_num_batched_tokens=max(engine.max_num_batched_tokens, batch + 1),
    )
    return StepProgram(
        model,
        sizes,
        num_pages=[batch * held + 1 for held in pages_of(windows, sizes, context)],
        pages_per_seq=pages,
        backend=target.chip.platform,
        mesh=target.mesh,
    )
