"""Functions compiled for chips that are not here, by their own compilers; skipped where those are not installed."""

import dataclasses
import os
import re
import subprocess
from typing import Any

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flexjax.hardware import chips, topology
from flexjax.hardware.mesh import MeshConfig, make_mesh

TPUS = ("v5e", "v6e")
GPUS = ("a100", "h100", "b200")  # sm_80, sm_90, sm_100.


def compiled(chip_name: str, function: Any, *arguments: Any, donate: int | tuple[int, ...] = ()) -> jax.stages.Compiled:
    """`function` of arguments of these shapes, for one such chip."""
    chip = chips.find(chip_name)
    if absent := topology.missing(chip):
        pytest.skip(absent)
    mesh = make_mesh(MeshConfig(), topology.devices(chip, "2x2" if chip.platform == "tpu" else "1")[:1])
    whole = NamedSharding(mesh, PartitionSpec())
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), arguments)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # Tells the function's bodies where it will run.
        return jax.jit(function, donate_argnums=donate).lower(*abstract).compile()


@dataclasses.dataclass(frozen=True)
class TritonKernel:
    """What compiling a Triton kernel gave: bytes and registers, of which a block has `shared_bytes` and a thread the
    others."""

    name: str
    shared_bytes: int
    registers: int
    spilled_bytes: int


def triton_kernels(
    monkeypatch: pytest.MonkeyPatch, chip_name: str, function: Any, *arguments: Any
) -> list[TritonKernel]:
    """The kernels of a function compiled for a GPU, each finished by NVIDIA's assembler."""
    jax_triton = pytest.importorskip("jax_triton", reason="jax-triton is not installed (extra cuda)")
    library, made = jax_triton.triton_lib, []
    compile_ttir = library.compile_ttir_inplace

    def keep(*args: Any) -> Any:
        made.append(compile_ttir(*args))
        return made[-1]

    monkeypatch.setattr(library, "compile_ttir_inplace", keep)
    # Kernels compiled before are kept, and would not come by here.
    monkeypatch.setattr(library.TritonFunction, "_kernel_cache", property(lambda self: {}))
    compiled(chip_name, function, *arguments)
    return [_assembled(each) for each in made]


def check_fits(kernels: list[TritonKernel], chip_name: str, names: list[str], most_spilled_bytes: int = 0) -> None:
    """They are those, and take no more registers and shared memory than there are, so that nothing is spilled."""
    compiler = chips.find(chip_name).compiler
    assert compiler is not None
    assert [kernel.name for kernel in kernels] == names
    for kernel in kernels:
        assert kernel.spilled_bytes <= most_spilled_bytes and kernel.registers <= 255
        assert kernel.shared_bytes <= compiler["shared_bytes_per_block"]


def _assembled(kernel: Any) -> TritonKernel:
    capability = re.search(r"\.target (\w+)", kernel.binary)
    assert capability
    # `compiled` has put the assembler of the CUDA wheel on PATH.
    done = subprocess.run(
        ["ptxas", "-v", f"--gpu-name={capability[1]}", "-o", os.devnull, "/dev/stdin"],
        input=kernel.binary,
        capture_output=True,
        text=True,
        check=True,
    )
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spilled = re.search(r"(\d+) bytes spill stores", done.stderr)
    assert registers and spilled, done.stderr
    return TritonKernel(kernel.name, kernel.shared_mem_bytes, int(registers[1]), int(spilled[1]))
