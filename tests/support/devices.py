"""Tests on more devices than this machine has: XLA makes several of the CPU, but only before JAX starts.

So such tests stand in files of their own, named without `test_`, and a test runs the file in a new process.
"""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def environment(count: int) -> dict[str, str]:
    """The environment of a process whose JAX has `count` CPU devices."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Unoptimised code compiles twice as fast; how a program is split is decided before.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0",
        # Threads of XLA's CPU client. It waits for a collective on one, may do so for two at once on a device, and has
        # but one a device unless told: a device that finds none keeps all the others waiting until they give up.
        "NPROC": str(8 * count),
        "PYTHONPATH": str(REPOSITORY),
    }


def run_tests(path: Path, count: int) -> None:
    """Runs a file of tests with `count` devices; its output is the failure's message."""
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-q", str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(count), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
