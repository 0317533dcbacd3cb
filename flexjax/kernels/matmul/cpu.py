"""Packed weights on the CPU: the C++ of cpu.cc, called through jax.ffi."""

import ctypes
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8, UInt32

from flexjax.kernels import native
from flexjax.kernels.matmul.packed import Packed

TARGET = "flexjax_packed_matmul"
READ = "flexjax_read_memory"
LIBRARY = Path(__file__).with_name("_cpu.so")
# The best that the processor has, up to the one asked for.
INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
FORMATS = ("float32", "bfloat16", "int8", "int4")
ACTIVATIONS = ("none", "silu", "gelu_tanh")


def instruction_set() -> str:
    """The one of `INSTRUCTION_SETS` that products use on this processor."""
    best = native.load(LIBRARY).flexjax_instruction_set
    best.restype = ctypes.c_int64
    return INSTRUCTION_SETS[best(ctypes.c_int64(len(INSTRUCTION_SETS) - 1))]


def register() -> None:
    """NotImplementedError where the library is not built."""
    native.register(LIBRARY, TARGET, READ)


def packed_matmul(
    x: Float[Array, "T D"],
    weight: Packed,
    *,
    activation_dtype: str | None = None,
    norm: Float[Array, "D"] | None = None,
    eps: float = 0.0,
    activation: str = "none",
    residual: Float[Array, "T F"] | None = None,
    out_dtype: Any = jnp.float32,
    instruction_set: str = "amx",
) -> Float[Array, "T F"]:
    """`residual + activation(norm(x) @ weight + bias)`, rounded once to `out_dtype`; a gated weight gives
    `activation(gates) * values`. Each row's result is the same to the bit whatever rows are beside it.

    Args:
      activation_dtype: "int8" rounds the rows, as `api.py` says.
      norm: rows are divided by the root of their mean square plus `eps`, multiplied with this, float32, and rounded
        to x's dtype first.
      activation: one of `ACTIVATIONS`.
      residual: of `out_dtype`.

    Raises NotImplementedError for what is not built.
    """
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"x is {x.dtype.name}; float32 and bfloat16 are built")
    if activation_dtype is not None and weight.dtype not in (jnp.int8, jnp.int4):
        raise NotImplementedError(f"rows in {activation_dtype} are built for int8 and int4 weights, not {weight.dtype}")
    register()
    given = lambda array: np.zeros(0, np.float32) if array is None else array
    columns = weight.F // 2 if weight.gated else weight.F
    call = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct((x.shape[0], columns), out_dtype))
    return call(
        x,
        weight.lines,
        given(weight.scale),
        given(norm),
        given(weight.bias),
        given(residual),
        eps=np.float32(eps),
        outputs=np.int64(weight.F),
        format=np.int64(FORMATS.index(weight.dtype.name)),
        activation=np.int64(ACTIVATIONS.index(activation)),
        gated=weight.gated,
        int8_rows=activation_dtype == "int8",
        isa=np.int64(INSTRUCTION_SETS.index(instruction_set)),
    )


def read_memory(data: UInt8[Array, "n"]) -> UInt32[Array, "1"]:
    """Something that depends on every 64 bytes of `data`, read once by the same threads as a weight: the limit of a
    product with few rows."""
    register()
    return jax.ffi.ffi_call(READ, jax.ShapeDtypeStruct((1,), jnp.uint32), has_side_effect=True)(data)
