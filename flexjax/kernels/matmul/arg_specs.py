"""Named shapes of the quantised matmul, the same for tests and benchmark."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

GROUP = 32  # Summed elements that share a scale of int4 values.


@dataclasses.dataclass(frozen=True)
class ArgSpec:
    """One call: `T` rows of `dtype` times an [D, F] weight of `weight_dtype`."""

    T: int
    D: int
    F: int
    weight_dtype: str = "bfloat16"
    dtype: str = "bfloat16"
    activation_dtype: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the call."""
        return dict(activation_dtype=self.activation_dtype)

    @property
    def weight_bytes(self) -> float:
        """Bytes of values and scales, int4 counted as half a byte."""
        bits = {"float32": 32, "bfloat16": 16, "float8_e4m3fn": 8, "int8": 8, "int4": 4}[self.weight_dtype]
        scales = {"int8": 1, "float8_e4m3fn": 1, "int4": self.D / GROUP}.get(self.weight_dtype, 0)
        return self.D * self.F * bits / 8 + 4 * scales * self.F

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.T * self.D * self.F

    def arguments(self, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """x, values, scale: random, with integers over their whole symmetric range and a result of about unit size."""
        rng = np.random.default_rng(seed)
        x = jnp.asarray(rng.standard_normal((self.T, self.D), np.float32), self.dtype)
        shape, size = (self.D, self.F), self.D**-0.5
        if self.weight_dtype in ("float32", "bfloat16"):
            return x, jnp.asarray(rng.standard_normal(shape, np.float32) * size, self.weight_dtype), None
        if self.weight_dtype == "float8_e4m3fn":
            values = jnp.asarray(rng.standard_normal(shape, np.float32), jnp.float8_e4m3fn)
            scale = size * (0.5 + rng.random(self.F, np.float32))
        else:
            largest = {"int8": 127, "int4": 7}[self.weight_dtype]
            values = jnp.asarray(rng.integers(-largest, largest + 1, shape, np.int8)).astype(self.weight_dtype)
            groups = () if self.weight_dtype == "int8" else (self.D // GROUP,)
            scale = size / largest * (0.5 + rng.random((*groups, self.F), np.float32))
        return x, values, jnp.asarray(scale, jnp.float32)


INT8 = functools.partial(ArgSpec, weight_dtype="int8")
INT8_ROWS = functools.partial(ArgSpec, weight_dtype="int8", activation_dtype="int8")
INT4 = functools.partial(ArgSpec, weight_dtype="int4")
FLOAT8 = functools.partial(ArgSpec, weight_dtype="float8_e4m3fn")

ARG_SPECS: dict[str, ArgSpec] = {
    "bfloat16_decode_1": ArgSpec(1, 768, 2048),
    "bfloat16_decode_17": ArgSpec(17, 288, 768),
    "bfloat16_prefill": ArgSpec(96, 896, 320),
    "bfloat16_odd_sizes": ArgSpec(5, 75, 37),
    "float32_decode_1": ArgSpec(1, 768, 256, "float32", "float32"),
    "float32_prefill": ArgSpec(70, 288, 288, "float32", "float32"),
    "float32_odd_sizes": ArgSpec(33, 75, 37, "float32", "float32"),
    "int8_decode_1": INT8(1, 768, 2048),
    "int8_decode_16": INT8(16, 896, 512),
    "int8_prefill": INT8(128, 288, 768),
    "int8_float32_rows": INT8(3, 256, 96, dtype="float32"),
    "int8_odd_sizes": INT8(6, 75, 37),
    "int8_rows_decode_1": INT8_ROWS(1, 768, 2048),
    "int8_rows_decode_16": INT8_ROWS(16, 4864, 896),
    "int8_rows_prefill": INT8_ROWS(100, 288, 768, dtype="float32"),
    "int8_rows_odd_sizes": INT8_ROWS(6, 75, 37),
    "int4_decode_1": INT4(1, 768, 2048),
    "int4_decode_16": INT4(16, 4864, 128),
    "int4_prefill": INT4(65, 288, 768),
    "int4_float32_rows": INT4(2, 64, 48, dtype="float32"),
    "int4_odd_sizes": INT4(7, 96, 37),
    "int4_int8_rows": INT4(40, 288, 256, activation_dtype="int8"),
    "float8_decode_16": ArgSpec(16, 256, 384, "float8_e4m3fn"),
}
# Llama-3-8B's gate and up, most wanted first: sizes to be timed, too large to be checked everywhere.
SERVING_SPECS: dict[str, ArgSpec] = {
    f"llama3_8b_{form}_decode_{T}": of(T, 4096, 28672)
    for T in (64, 8)
    for form, of in (("int4", INT4), ("int8", INT8), ("int8_rows", INT8_ROWS), ("float8", FLOAT8))
}
