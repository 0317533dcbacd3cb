"""JAX's persistent compilation cache, and a counter of what XLA compiles."""

import logging
import os
import tempfile
import threading
from pathlib import Path
from typing import Self

import jax
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache

from flexjax import files
from flexjax.refusal import Refusal

_BUCKETS = ("gs", "s3", "az")  # JAX opens these by etils.epath and fsspec, and warns where the package is missing.

# Recorded by JAX once for every program that it compiles or loads from the persistent cache, with
# the seconds that this took; the second event follows only where the cache had the program.
_PROGRAM_EVENT = "/jax/core/compile/backend_compile_duration"
_HIT_EVENT = "/jax/compilation_cache/cache_hits"


def default_directory() -> Path:
    """Where compiled programs are kept: `$XDG_CACHE_HOME/flexjax/xla`, else `~/.cache/flexjax/xla`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "flexjax" / "xla"


def enable(path: Path | None = None) -> Path | None:
    """Keeps every compiled program on disk, for this and later processes; returns the directory.

    Without `path`, a directory already given to JAX (`JAX_COMPILATION_CACHE_DIR`) is kept, else
    `default_directory()` is taken. The directory is made for its owner only, because JAX runs what
    it finds there. A bucket that JAX reads and writes itself (gs://…) stays what JAX was given, and
    None is returned; Refusal for another URL. Where the directory cannot be made or written in, a
    warning says so: programs are compiled again in every process, and None is returned.
    """
    given = path or jax.config.jax_compilation_cache_dir
    scheme = files.scheme(given) if given else None
    if scheme in _BUCKETS and not isinstance(given, Path):
        directory = None
    elif scheme is not None:
        raise Refusal(
            f"The compilation cache must be a folder of this machine or a bucket that JAX opens "
            f"({', '.join(f'{known}://' for known in _BUCKETS)}, in JAX_COMPILATION_CACHE_DIR); got {given}."
        )
    else:
        directory = _made(given)
        jax.config.update("jax_compilation_cache_dir", None if directory is None else str(directory))
    # JAX skips programs that compile in under a second; an engine has dozens of those.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # JAX looks at the settings once; forget an answer given before they were set.
    compilation_cache.reset_cache()
    return directory


def _made(given: Path | str | None) -> Path | None:
    """The directory, ready to be written in; None, with a warning, where it cannot be."""
    try:
        directory = Path(given or default_directory()).expanduser().resolve()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=directory) as file:  # A full disk still makes folders.
            file.write(bytes(1 << 16))
    except (OSError, RuntimeError) as error:  # RuntimeError is pathlib's, where a user has no home.
        logging.warning(
            "Compiled programs are not kept, so that each process compiles its own: %s. Set JAX_COMPILATION_CACHE_DIR "
            "or XDG_CACHE_HOME to a folder that can be written in.",
            error,
        )
        return None
    return directory


class CompileCounter:
    """Counts the programs that JAX compiles or loads, in any thread, while the context is open.

        with CompileCounter() as counter:
            step(...)
        assert counter.programs == 0, "a compile inside the measured window"

    The figures can be read while the context is open and stay after it. Invariant:
    `programs == backend_compiles + cache_hits`.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._programs = 0
        self._cache_hits = 0
        self._seconds = 0.0
        self._names: list[str] = []

    def __enter__(self) -> Self:
        monitoring.register_event_listener(self._on_event)
        monitoring.register_event_duration_secs_listener(self._on_duration)
        return self

    def __exit__(self, *_) -> None:
        monitoring.unregister_event_listener(self._on_event)
        monitoring.unregister_event_duration_listener(self._on_duration)

    def _on_event(self, event: str, **_) -> None:
        if event == _HIT_EVENT:
            with self._lock:
                self._cache_hits += 1

    def _on_duration(self, event: str, duration_secs: float, **kwargs) -> None:
        if event == _PROGRAM_EVENT:
            with self._lock:
                self._programs += 1
                self._seconds += duration_secs
                self._names.append(str(kwargs.get("fun_name", "?")))

    @property
    def programs(self) -> int:
        """New programs: compiled or loaded. Either stalls a request that waits for it."""
        return self._programs

    @property
    def backend_compiles(self) -> int:
        """Programs that XLA really compiled."""
        return self._programs - self._cache_hits

    @property
    def cache_hits(self) -> int:
        """Programs loaded from the persistent cache instead."""
        return self._cache_hits

    @property
    def seconds(self) -> float:
        """Time spent compiling and loading; threads add up, so it can exceed wall time."""
        return self._seconds

    @property
    def names(self) -> tuple[str, ...]:
        """The programs' function names, in order."""
        return tuple(self._names)
