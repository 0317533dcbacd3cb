"""Ragged paged attention on the CPU: the C++ of cpu.cc, called through jax.ffi."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flexjax.kernels import native
from flexjax.kernels.ragged_paged_attention.pages import Int4Pages, Pages, ScaledPages, dtype_name

TARGET, INT4_TARGET = "flexjax_ragged_paged_attention", "flexjax_int4_paged_attention"
SCALED_TARGET = "flexjax_scaled_paged_attention"
LIBRARY = Path(__file__).with_name("_cpu.so")
PAGE_DTYPES = ("float32", "bfloat16", "int8", "float8_e4m3fn", "int4")
INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "amx")  # The best that the processor has, up to the one asked for.


def ragged_paged_attention(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    kv_pages: Pages,
    query_starts: Int[Array, "B+1"],
    kv_lengths: Int[Array, "B"],
    page_table: Int[Array, "B P"],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    max_query_len: int,
    instruction_set: str = "amx",
) -> tuple[Float[Array, "T N H"], Pages]:
    """The contract of `api.py`. A row's float32 result is the same to the bit whatever shares its batch,
    and whether its sequence came whole, in chunks or token by token."""
    del max_query_len  # Rows are counted at run time.
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"q is {q.dtype.name}; float32 and bfloat16 are built")
    if dtype_name(kv_pages) not in PAGE_DTYPES:
        raise NotImplementedError(f"kv_pages is {dtype_name(kv_pages)}; {', '.join(PAGE_DTYPES)} are built")
    native.register(LIBRARY, TARGET, INT4_TARGET, SCALED_TARGET)
    pages = jax.tree.leaves(kv_pages)
    # Scales alone are only read.
    written = [i for i in range(len(pages)) if not (isinstance(kv_pages, ScaledPages) and i == 1)]
    call = jax.ffi.ffi_call(
        {Int4Pages: INT4_TARGET, ScaledPages: SCALED_TARGET}.get(type(kv_pages), TARGET),
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, *(pages[i] for i in written))],
        input_output_aliases={3 + i: 1 + at for at, i in enumerate(written)},
    )
    out, *new = call(
        q,
        k.astype(q.dtype),
        v.astype(q.dtype),
        *pages,
        query_starts,
        kv_lengths,
        page_table,
        scale=np.float32(scale),
        softcap=np.float32(softcap or 0),
        window=np.int64(window or 0),
        isa=np.int64(INSTRUCTION_SETS.index(instruction_set)),
    )
    for i, array in zip(written, new, strict=True):
        pages[i] = array
    return out, jax.tree.unflatten(jax.tree.structure(kv_pages), pages)
