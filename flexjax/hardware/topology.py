"""Chips that are not here: devices described to the chip's own compiler, for programs that are compiled and never run.

TPUs need libtpu, NVIDIA GPUs the CUDA plugin of JAX and nvidia-cuda-nvcc, all in the extra `virtual`; neither
needs a driver. What is compiled for a described device is what would be compiled for a real one.
"""

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from flexjax.hardware import chips
from flexjax.hardware.chips import Chip
from flexjax.refusal import Refusal

# libtpu else asks the cloud which machine it runs on, and lets one process at a time in.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_EXTRA = "Install the compilers of chips that are not here: pip install 'flexjax[virtual]'."

# A GPU as XLA describes it to itself (stream_executor.GpuTargetConfigProto); what is the same for all of them is
# written out.
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 shared_memory_per_block: 49152
  core_count: {cores} fpus_per_core: {fpus_per_core} clock_rate_ghz: {clock_ghz}
  l2_cache_size: {l2_bytes} shared_memory_per_core: {shared_bytes_per_core}
  shared_memory_per_block_optin: {shared_bytes_per_block}
  memory_bandwidth: {memory_bytes_per_s} device_memory_size: {memory_bytes}
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
}}
platform_name: "CUDA"
device_description_str: "{kind}"
"""


def describable() -> tuple[str, ...]:
    """Names of the chips that can be described."""
    return tuple(name for name, chip in chips.table().items() if chip.compiler is not None)


def devices(chip: Chip, topology: str) -> list[Any]:
    """Described devices: of a TPU the grid "2x4" (v5e, v6e) or "2x2x1" (v4, v5p, 7x), of a GPU "8" in one host or
    "2x8", hosts × GPUs.

    A 7x chip is two devices. Refusal where the chip or topology cannot be described, or the extra is missing.
    """
    if chip.compiler is None:
        raise Refusal(f"{chip.name} has no compiler to describe it to; chips that do: {', '.join(describable())}.")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", topology):
        raise Refusal(f"A topology is sizes with x between, such as 2x4, 2x2x1 or 8; got {topology!r}.")
    sizes = [int(size) for size in topology.split("x")]
    return (_tpus if chip.platform == "tpu" else _gpus)(chip, sizes)


def missing(chip: Chip) -> str | None:
    """What must be installed to describe the chip; None when everything is there."""
    needed = ("libtpu",) if chip.platform == "tpu" else ("jax_plugins.xla_cuda13", "jax_cuda13_plugin", "nvidia.cu13")
    absent = [name for name in needed if not _installed(name)]
    return f"{', '.join(absent)} is not installed. {_EXTRA}" if absent else None


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # Of its parent.
        return False


def _tpus(chip: Chip, sizes: Sequence[int]) -> list[Any]:
    assert chip.compiler is not None
    if absent := missing(chip):
        raise Refusal(f"Describing a {chip.full_name} takes its compiler; {absent}")
    for name, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    host = chip.compiler["host"]
    name = f"{chip.compiler['name']}:{'x'.join(map(str, sizes))}"
    rule = (
        f"{chip.full_name} is built as a grid of {len(host)} dimensions, in hosts of {'x'.join(map(str, host))}; got "
        f"{'x'.join(map(str, sizes))}."
    )
    if len(sizes) != len(host):
        raise Refusal(rule)
    bounds = [*map(min, host, sizes), 1][:3]
    options = {"chip_config_name": chip.compiler["config"]} if "config" in chip.compiler else {}
    try:
        found = topologies.get_topology_desc(name, platform="tpu", chips_per_host_bounds=bounds, **options)
    except jax.errors.JaxRuntimeError as error:
        raise Refusal(f"{rule} Its compiler says: {error}") from error
    return list(found.devices)


def _gpus(chip: Chip, sizes: Sequence[int]) -> list[Any]:
    assert chip.compiler is not None and chip.memory_gb_per_s is not None and chip.memory_gib is not None
    if absent := missing(chip):
        raise Refusal(f"Describing an {chip.full_name} takes its compiler; {absent}")
    if len(sizes) > 2:
        raise Refusal(f"GPUs are described as 8 (in one host) or 2x8 (hosts × GPUs); got {'x'.join(map(str, sizes))}.")
    # An older ptxas on PATH would refuse what Triton writes.
    found = importlib.util.find_spec("nvidia.cu13")
    assert found is not None and found.submodule_search_locations
    tools = str(Path(found.submodule_search_locations[0]) / "bin")
    if tools not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([tools, os.environ.get("PATH", "")])
    target = _GPU.format(
        **chip.compiler,
        clock_ghz=chip.clock_ghz,
        memory_bytes_per_s=int(chip.memory_gb_per_s * 1e9),
        memory_bytes=int(chip.memory_gib * 2**30),
        kind=chip.device_kinds[0],
    )
    hosts, per_host = sizes if len(sizes) == 2 else (1, sizes[0])
    described = topologies.get_topology_desc(
        "any", platform="cuda", topology=f"1x{hosts}x{per_host}", target_config=target
    )
    return list(described.devices)
