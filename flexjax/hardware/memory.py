"""Memory of the process and of its devices: the most that was held, and giving back what is not needed."""

import contextlib
import ctypes
import mmap
import re
import resource
import sys
from pathlib import Path

from flexjax.refusal import Unsupported

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_MAPS = Path("/proc/self/smaps")
_MAPPED = re.compile(r"^(\w+)-(\w+) r-[x-]p \S+ \S+ \S+ +/(?!memfd:).*\n(?:\w+:.*\n)*?Anonymous: +0 kB$", re.MULTILINE)


def rss_bytes() -> int:
    """Resident memory that this process holds now; Unsupported where the system does not say (not Linux)."""
    held = _status("VmRSS")
    if held is None:
        raise Unsupported(f"{_STATUS} does not tell what this process holds; Linux has it.")
    return held


def peak_rss_bytes() -> int:
    """Most resident memory that this process has held, since its start or the last reset."""
    held = _status("VmHWM")
    if held is not None:
        return held
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Bytes on macOS, KiB elsewhere.


def _status(name: str) -> int | None:
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


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


def forget_code() -> None:
    """Lets go of the pages of libraries that are in memory: 130 MB of a process that has compiled, most of them the
    compiler's. What runs again is mapped again, from the file or the system's copy of it.

    On Linux; elsewhere nothing happens.
    """
    if not _MAPS.exists():
        return
    madvise = ctypes.CDLL(None).madvise
    # Only what cannot be written and holds no page of the process's own is as the file has it.
    for begin, end in _MAPPED.findall(_MAPS.read_text()):
        first, past = int(begin, 16), int(end, 16)
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(past - first), mmap.MADV_DONTNEED)


def peak_device_bytes() -> int | None:
    """Most memory held on this process's devices, summed; None where the backend does not count (CPU)."""
    import jax

    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if known else None
