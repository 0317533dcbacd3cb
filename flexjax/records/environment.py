"""What a result was made with: software, processor, memory, devices, git revision.

Nothing that names a person or a place: no host name, user, path or address.
"""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

from flexjax.hardware import chips, xla_flags
from flexjax.records.schema import Value

PACKAGES = ("flexjax", "jax", "jaxlib", "libtpu", "flax", "numpy", "optax", "tokenizers", "mlcommons_loadgen", "zeus")

_SOURCE = Path(__file__).resolve().parents[2]
_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")

# Instruction sets that change what a CPU can reach, as /proc/cpuinfo names them.
_CPU_FEATURES = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
    "i8mm",
)


def collect() -> dict[str, Value]:
    """The `software.` and `system.` columns of this machine and process. Starts JAX's backend."""
    return {**software(), **cpu(), **accelerators()}


def of_job(name: str, version: str, config_json: str, began: str, fault: str = "") -> dict[str, Value]:
    """`collect`, and the columns that every row of a job has which LoadGen does not drive; `fault` says what makes its
    result invalid."""
    return {
        **collect(),
        "datetime": began,
        "benchmark.name": f"flexjax-{name}",
        "benchmark.version": version,
        "benchmark.valid": not fault,
        "benchmark.invalid_reasons": fault,
        "benchmark.loadgen_verdict": "not driven by LoadGen",
        "benchmark.config_json": config_json,
        "submission.scenario": name,
    }


def software() -> dict[str, Value]:
    """Versions, operating system, XLA flags and git revision."""
    versions = {name: version(name) for name in PACKAGES}
    revision, note = git_revision()
    return {
        "software.framework": f"JAX {versions['jax']}",
        "software.operating_system": _operating_system(),
        "software.python": platform.python_version(),
        **{f"software.framework.{name}": found for name, found in versions.items()},
        "software.xla_flags": " ".join(filter(None, xla_flags.in_force().values())),
        "software.git_revision": revision,
        "software.git_note": note,
    }


def version(package: str) -> str | None:
    """The installed version; None where the package is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_revision(source: Path = _SOURCE) -> tuple[str, str]:
    """The commit of the source tree, "+changes" after it where files differ; ("unknown", why) without one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    if not (source / ".git").exists():
        return "unknown", "installed as a package, not run from a git checkout"
    try:
        commit = git("rev-parse", "HEAD")
        return (f"{commit}+changes" if git("status", "--porcelain", "--untracked-files=no") else commit), ""
    except FileNotFoundError:
        return "unknown", "git is not installed"
    except subprocess.TimeoutExpired:
        return "unknown", "git did not answer within 10 s"
    except subprocess.CalledProcessError as error:
        return "unknown", f"git failed: {error.stderr.strip().splitlines()[0] if error.stderr else error.returncode}"


def cpu() -> dict[str, Value]:
    """Processor and memory. A figure that the operating system does not tell is None."""
    info = _first_processor(_CPUINFO.read_text()) if _CPUINFO.exists() else {}
    flags = set((info.get("flags") or info.get("Features") or "").split())
    memory = _memory_bytes()
    return {
        "system.cpu.model": info.get("model name") or platform.processor() or platform.machine(),
        "system.cpu.vendor": info.get("vendor_id"),
        "system.cpu.architecture": platform.machine(),
        "system.cpu.core_count": os.cpu_count(),
        "system.cpu.cores_used": chips.cores(),
        "system.cpu.features": " ".join(name for name in _CPU_FEATURES if name in flags) or None,
        "system.memory.capacity_gib": None if memory is None else round(memory / 2**30, 2),
    }


def accelerators() -> dict[str, Value]:
    """What JAX computes on, by its own name and by that of the chip table."""
    import jax

    running = chips.detect()
    chip = running.chip
    return {
        "system.platform": jax.default_backend(),
        "system.number_of_nodes": jax.process_count(),
        "system.accelerator.name": running.device_kind,
        "system.accelerator.vendor": None if chip is None or chip.platform == "cpu" else chip.vendor,
        "system.accelerator.total_count": jax.device_count(),
        "system.accelerator.count_per_node": jax.local_device_count(),
        "system.accelerator.memory_capacity_gib": None if chip is None else chip.memory_gib,
        "system.chip": None if chip is None else chip.name,
        "system.chip_units": running.units,
    }


def _first_processor(cpuinfo: str) -> Mapping[str, str]:
    fields = {}
    for line in cpuinfo.split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    return fields


def _memory_bytes() -> int | None:
    """Memory of the machine, or of the container where that is allowed less."""
    found = []
    if _MEMINFO.exists():
        found += [int(line.split()[1]) * 1024 for line in _MEMINFO.read_text().splitlines() if "MemTotal" in line]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        found.append(int(text))
    return min(found, default=None)


def _operating_system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name}, {platform.system()} {platform.release().split('-')[0]}"
