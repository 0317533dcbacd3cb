"""Peak memory, of the process and of its devices."""

import contextlib
import ctypes
import resource
import sys
from pathlib import Path
from typing import Self

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_rss_bytes() -> int:
    """Most resident memory that this process has held, since its start or the last reset."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Bytes on macOS, KiB elsewhere.


def reset_peak_rss() -> bool:
    """Starts `peak_rss_bytes` again from what is held now; False where the kernel cannot (not Linux)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def trim() -> None:
    """Gives back to the system what compiling and loading have left unused in the process's heap (glibc alone keeps
    it: 600 MB after the steps of a small model)."""
    with contextlib.suppress(OSError, AttributeError):  # Another C library.
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_device_bytes() -> int | None:
    """Most memory held on this process's devices, summed; None where the backend does not count (CPU)."""
    import jax

    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if known else None


class PeakMemory:
    """Peak memory while the context was open.

    `process_bytes` is resident memory; where the kernel cannot restart its mark it covers the whole
    life of the process, and `exact` is False. `device_bytes` always covers the whole life.
    """

    process_bytes: int
    device_bytes: int | None
    exact: bool

    def __enter__(self) -> Self:
        self.exact = reset_peak_rss()
        return self

    def __exit__(self, *_) -> None:
        self.process_bytes = peak_rss_bytes()
        self.device_bytes = peak_device_bytes()
