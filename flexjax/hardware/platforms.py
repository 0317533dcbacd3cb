"""Which platforms JAX tries to start; usable before JAX is imported."""

import os
import sys
from pathlib import Path

# Device nodes of NVIDIA and AMD GPUs and of TPUs; dxg is the GPU of a Windows host.
_NODES = ("nvidia[0-9]*", "kfd", "accel*", "vfio/[0-9]*", "dxg")
# By either of these a user says what JAX is to start.
_CHOICES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")


def cpu_unless_accelerated() -> None:
    """Keeps JAX to the CPU on a machine with no accelerator: where the compilers of absent chips are installed (extra
    `virtual`) JAX else tries to start those chips, and complains that it cannot.

    What the user has chosen stays, in the environment or in `jax.config`; so does what JAX has started already.
    """
    if any(name in os.environ for name in _CHOICES) or any(any(Path("/dev").glob(node)) for node in _NODES):
        return
    jax = sys.modules.get("jax")
    if jax is None:
        os.environ["JAX_PLATFORMS"] = "cpu"
    elif jax.config.jax_platforms is None and not jax_started():  # JAX has read the environment and will not again.
        os.environ["JAX_PLATFORMS"] = "cpu"  # For processes that this one starts.
        jax.config.update("jax_platforms", "cpu")


def jax_started() -> bool:
    """Whether JAX has started a backend, after which neither flags nor platforms can be chosen."""
    bridge = sys.modules.get("jax._src.xla_bridge")  # JAX has no public question for this.
    return bridge is not None and bridge.backends_are_initialized()
