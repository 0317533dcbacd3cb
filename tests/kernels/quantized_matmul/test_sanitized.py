"""The C++ product under the address and undefined-behaviour sanitizers, on all arg_specs and odd sizes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from flexjax.kernels.quantized_matmul import cpu
from flexjax.kernels.quantized_matmul.arg_specs import ARG_SPECS

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
HERE, KERNELS = Path(__file__).parent, Path(cpu.__file__).parents[1]
ODD = [(1, 1, 1), (3, 5, 33), (17, 65, 31), (33, 63, 70), (50, 129, 16)]  # T, D, F


def lines() -> list[str]:
    shapes = [(s.T, s.D, s.F, s.weight_dtype, s.activation_dtype, s.dtype) for s in ARG_SPECS.values()]
    shapes = [s for s in shapes if s[3] in cpu.FORMATS]
    shapes += [(*odd, name, None, dtype) for odd in ODD for name in cpu.FORMATS for dtype in ("float32", "bfloat16")]
    shapes += [(*odd, name, "int8", "bfloat16") for odd in ODD for name in ("int8", "int4")]
    found = []
    for T, D, F, name, rows, dtype in shapes:
        for isa in range(len(cpu.INSTRUCTION_SETS)):
            for gated in (0, 1):
                F_ = F + F % 2
                found.append(f"{T} {D} {F_} {cpu.FORMATS.index(name)} {rows is not None:d} {dtype == 'float32':d} {gated} {isa}")
    return found


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_nothing_is_read_or_written_out_of_place(tmp_path):
    program = tmp_path / "sanitized"
    flags = ["-std=c++17", "-O1", "-w", "-fsanitize=address,undefined", "-fno-sanitize=alignment"]
    built = subprocess.run(
        [str(COMPILER), *flags, f"-I{KERNELS}", str(HERE / "sanitized.cc"), "-o", str(program)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode and "sanitize" in built.stderr:
        pytest.skip(f"the compiler has no sanitizers: {built.stderr[-200:]}")
    assert built.returncode == 0, built.stderr
    options = {"UBSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    work = lines()
    ran = subprocess.run(
        [str(program)], input="\n".join(work), capture_output=True, text=True, env=os.environ | options, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout == f"{len(work)} products\n"
