"""Triton kernels on a CPU: Triton's own interpreter over NumPy arrays, in the place of `jax_triton.triton_call`.

The interpreter takes the place of the compiler when Triton is imported, so tests that want it stand in files of their
own, named without `test_`, and a test runs the file in a new process (`run_tests`). It checks values: indices, masks,
loops and rounding are those of the kernel. What a compiler makes of it, and races between programs, it does not see.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
_OF_CALL = {"cost_estimate", "name", "num_warps", "num_stages", "num_ctas", "backend_options"}
_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float8_e4m3fn": "fp8e4nv", "int32": "i32", "int8": "i8"}


def run_tests(path: Path) -> None:
    """Runs a file of tests under the interpreter; its output is the failure's message."""
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-q", str(path)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


def beside_the_formula(
    monkeypatch: pytest.MonkeyPatch, op: Callable[..., Any], spec: Any
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each result of the GPU body under the interpreter, and what the formula gives."""
    monkeypatch.setattr("jax_triton.triton_call", triton_call)
    options = getattr(spec, "options", {})
    got, want = (jax.tree.leaves(op(*spec.arguments(), body=body, **options)) for body in ("triton_gpu", "base"))
    return [(np.asarray(g, np.float32), np.asarray(w, np.float32)) for g, w in zip(got, want, strict=True)]


class _Memory:
    """As much of a torch tensor as the interpreter asks for."""

    def __init__(self, array: np.ndarray):
        self.array, self.dtype = array, _TYPES[array.dtype.name]

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> "_Memory":
        return self

    def cpu(self) -> "_Memory":
        return self

    def new_empty(self, *_: Any, **__: Any) -> "_Memory":
        return _Memory(self.array)

    def set_(self, storage: "_Memory", *_: Any) -> None:
        self.array = storage.array

    def copy_(self, _: "_Memory") -> None:  # Both are the host's.
        pass

    def _nothing(self) -> int:
        return 0

    storage_offset = size = stride = _nothing


def triton_call(*args: Any, kernel: Any, out_type: Any, grid: int | Sequence[int], **options: Any) -> Any:
    """`jax_triton.triton_call`, now and here. What a kernel does not write is NaN, or the smallest integer."""
    _mend_bfloat16()
    leaves, tree = jax.tree.flatten(out_type)
    results = [_unwritten(leaf) for leaf in leaves]
    refs = [arg if isinstance(arg, jax.Ref) else None for arg in args]
    operands = [
        np.array(arg[...] if ref is not None else arg) if isinstance(arg, jax.Ref | jax.Array) else arg
        for arg, ref in zip(args, refs, strict=True)
    ]
    kernel.run(
        *(_Memory(each) if isinstance(each, np.ndarray) else each for each in (*operands, *results)),
        grid=(grid,) if isinstance(grid, int) else tuple(grid),
        warmup=False,
        **{name: value for name, value in options.items() if name not in _OF_CALL},
    )
    for ref, operand in zip(refs, operands, strict=True):
        if ref is not None:
            ref[...] = jnp.asarray(operand)
    return jax.tree.unflatten(tree, [jnp.asarray(result) for result in results])


@functools.cache
def _mend_bfloat16() -> None:
    """Triton 3.9 interprets a dot of bfloat16 as one of its bits, does not widen integers to it, and cuts where the GPU
    rounds to even."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def mended_dot(self, a, b, sums, *options):
        a, b = (cast(self, x, tl.float32) if x.dtype == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, sums, *options)

    def mended_cast(self, source, target):
        if source.dtype.scalar != tl.bfloat16 and target.scalar == tl.bfloat16:
            return TensorHandle(source.data.astype(jnp.bfloat16).view(np.uint16), tl.bfloat16)
        return cast(self, source, target)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = mended_dot, mended_cast


def _unwritten(leaf: Any) -> np.ndarray:
    dtype = jnp.dtype(leaf.dtype)
    nothing = np.iinfo(dtype).min if np.issubdtype(dtype, np.integer) else np.nan
    return np.full(leaf.shape, nothing, dtype)
