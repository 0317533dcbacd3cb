"""Which platforms JAX tries to start; usable before JAX is imported."""

import os
from pathlib import Path

# Device nodes of NVIDIA and AMD GPUs and of TPUs; dxg is the GPU of a Windows host.
_NODES = ("nvidia[0-9]*", "kfd", "accel*", "vfio/[0-9]*", "dxg")


def cpu_unless_accelerated() -> None:
    """Sets JAX_PLATFORMS=cpu, unless it is set, on a machine with no accelerator: where the compilers of absent chips
    are installed (extra `virtual`) JAX else tries to start those chips, and complains that it cannot."""
    if not any(any(Path("/dev").glob(node)) for node in _NODES):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
