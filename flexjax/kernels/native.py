"""The C++ of an op, built beside its cpu.py by setup.py."""

import ctypes
import functools
from pathlib import Path

import jax


@functools.cache
def load(library: Path) -> ctypes.CDLL:
    """The library, loaded once; NotImplementedError where it is not built."""
    if not library.is_file():
        raise NotImplementedError(f"{library.name} is not built (a C++ compiler and `make setup` build it)")
    return ctypes.cdll.LoadLibrary(str(library))


@functools.cache
def register(library: Path, *targets: str) -> None:
    """Makes functions of the library known to XLA by their names; NotImplementedError where it is not built."""
    loaded = load(library)
    for target in targets:
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(loaded, target)), platform="cpu")
