"""The rotary cut on the CPU: the C++ of cpu.cc, called through jax.ffi."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flexjax.kernels import native

TARGET = "flexjax_rotary"
LIBRARY = Path(__file__).with_name("_cpu.so")
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")  # The best that the processor has, up to the one asked for.


def rotary(
    x: Float[Array, "T C"],
    cos: Float[Array, "T half"],
    sin: Float[Array, "T half"],
    *,
    num_heads: int,
    num_kv_heads: int,
    dtype: Any,
    instruction_set: str = "avx512",
) -> tuple[Float[Array, "T N H"], Float[Array, "T K H"], Float[Array, "T K H"]]:
    """The contract of `api.py`."""
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"results in {jnp.dtype(dtype).name} were asked for; float32 and bfloat16 are built")
    native.register(LIBRARY, TARGET)
    shapes = [(x.shape[0], heads, 2 * cos.shape[1]) for heads in (num_heads, num_kv_heads, num_kv_heads)]
    call = jax.ffi.ffi_call(TARGET, [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes])
    q, k, v = call(x, cos, sin, isa=np.int64(INSTRUCTION_SETS.index(instruction_set)))
    return q, k, v
