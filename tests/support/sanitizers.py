"""C++ bodies under the address and undefined-behaviour sanitizers."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from flexjax import kernels

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def check(source: Path, flags: Sequence[str], work: Sequence[str], unit: str, folder: Path) -> None:
    """Builds `source` in `folder` and hands it the lines of `work`: it must end well, and say how many it did."""
    program, headers = folder / "sanitized", Path(kernels.__file__).parent
    # Checks of an address by calls, and code for a debugger: as many are made, and compiled in half the time.
    flags = ["--param", "asan-instrumentation-with-call-threshold=0", *flags]
    flags = ["-std=c++17", "-Og", "-w", "-fsanitize=address,undefined", *flags, "-DFLEXJAX_CHECK_TILES", f"-I{headers}"]
    built = subprocess.run(
        [str(COMPILER), *flags, str(source), "-o", str(program)], capture_output=True, text=True, check=False
    )
    if built.returncode and "sanitize" in built.stderr:
        pytest.skip(f"the compiler has no sanitizers: {built.stderr[-200:]}")
    assert built.returncode == 0, built.stderr
    options = {"UBSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    ran = subprocess.run(
        [str(program)], input="\n".join(work), capture_output=True, text=True, env=os.environ | options, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout == f"{len(work)} {unit}\n"
