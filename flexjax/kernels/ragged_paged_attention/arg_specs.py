"""Named shapes of ragged paged attention, the same for tests and benchmark."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flexjax.kernels.ragged_paged_attention.pages import LARGEST, Int4Pages, Pages, ScaledPages

# Of channels, by turns random: the smaller clips unit normals past two (int8) and 1.75.
SCALES = {"int8": (1 / 64, 1 / 32, 1 / 4), "float8_e4m3fn": (1 / 256, 1 / 64, 1 / 8)}


@dataclasses.dataclass(frozen=True)
class ArgSpec:
    """One call: heads, pages, and for each sequence its (new tokens, tokens after the step)."""

    N: int
    K: int
    H: int
    page_size: int  # tokens
    sequences: tuple[tuple[int, int], ...]
    dtype: str = "float32"  # Of queries, new keys and values.
    page_dtype: str | None = None  # None: as `dtype`; "int4": `Int4Pages`, int8 and float8: `ScaledPages`.
    window: int | None = None  # tokens
    softcap: float | None = None
    padding_rows: int = 0
    padding_sequences: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the call."""
        longest = max(new for new, _ in self.sequences)
        return dict(scale=self.H**-0.5, window=self.window, softcap=self.softcap, max_query_len=longest)

    @property
    def read_bytes(self) -> int:
        """Bytes of keys and values that the rows of each sequence see, each counted once."""
        seen = sum(min(total, (self.window or total) + new - 1) for new, total in self.sequences)
        page_dtype = self.page_dtype or self.dtype
        vector = self.H / 2 + 2 if page_dtype == "int4" else self.H * jnp.dtype(page_dtype).itemsize
        return int(seen * self.K * 2 * vector)

    @property
    def products(self) -> int:
        """Multiply-adds of scores and of weighted values, over the pairs that the masks leave."""
        pairs = 0
        for new, total in self.sequences:
            seen = np.arange(total - new + 1, total + 1)
            pairs += int(np.minimum(seen, self.window or total).sum())
        return 2 * pairs * self.N * self.H

    def arguments(self, seed: int = 0) -> tuple[Any, ...]:
        """q, k, v, kv_pages, query_starts, kv_lengths, page_table: random, with the pages of a sequence
        strewn over the pool and every page filled, those of nobody too."""
        rng = np.random.default_rng(seed)
        rows = sum(new for new, _ in self.sequences)
        needed = [-(-total // self.page_size) for _, total in self.sequences]
        num_pages = sum(needed) + 3
        owned = rng.permutation(np.arange(1, num_pages))
        table = np.zeros((len(self.sequences) + self.padding_sequences, max(needed) + 1), np.int32)
        for b, n in enumerate(needed):
            table[b, :n], owned = owned[:n], owned[n:]
        ends = np.cumsum([0] + [new for new, _ in self.sequences] + [0] * self.padding_sequences)
        lengths = [total for _, total in self.sequences] + [0] * self.padding_sequences

        def normal(*shape: int, dtype: str) -> jax.Array:
            return jnp.asarray(rng.standard_normal(shape, np.float32), dtype)

        T = rows + self.padding_rows
        return (
            normal(T, self.N, self.H, dtype=self.dtype),
            normal(T, self.K, self.H, dtype=self.dtype),
            normal(T, self.K, self.H, dtype=self.dtype),
            self._pages(num_pages, rng),
            jnp.asarray(ends, jnp.int32),
            jnp.asarray(lengths, jnp.int32),
            jnp.asarray(table, jnp.int32),
        )

    def _pages(self, num_pages: int, rng: np.random.Generator) -> Pages:
        dtype = self.page_dtype or self.dtype
        if dtype == "int4":
            key, value = rng.integers(-7, 8, (2, num_pages, self.K, self.page_size, self.H), np.int8)
            scales = rng.uniform(0.1, 0.5, (num_pages, 2 * self.K, self.page_size))
            return Int4Pages(jnp.asarray((key & 15) | (value << 4)), jnp.asarray(scales, jnp.bfloat16))
        x = rng.standard_normal((num_pages, self.page_size, self.K, 2, self.H), np.float32)
        if dtype not in LARGEST:
            return jnp.asarray(x, dtype)
        scales = rng.choice(np.asarray(SCALES[dtype], np.float32), (self.K, 2, self.H))
        x = np.clip(x / scales, -LARGEST[dtype], LARGEST[dtype])
        values = jnp.asarray(np.round(x) if dtype == "int8" else x, dtype)
        counts = rng.integers(0, 9, (self.K, 2)).astype(np.uint32)
        return ScaledPages(values, jnp.asarray(scales), jnp.asarray(counts))


def decode(batch: int, length: int) -> tuple[tuple[int, int], ...]:
    """`batch` sequences of one new token each, of lengths that differ a little around `length`."""
    return tuple((1, length - 7 * (b % 5)) for b in range(batch))


SHIPPED = functools.partial(ArgSpec, N=8, K=4, H=32, page_size=16)  # The model that the project ships.
LLAMA3_8B = functools.partial(ArgSpec, N=32, K=8, H=128, page_size=16)
GEMMA2_2B = functools.partial(ArgSpec, N=8, K=4, H=256, page_size=16, softcap=50.0)
# What configs/bench_cpu.py calls M and S.
BENCH_M = functools.partial(ArgSpec, N=12, K=4, H=64, page_size=16, dtype="bfloat16")
BENCH_S = functools.partial(ArgSpec, N=6, K=6, H=48, page_size=16, dtype="bfloat16")
QWEN2_HALF_B = functools.partial(ArgSpec, N=14, K=2, H=64, page_size=32)

ARG_SPECS: dict[str, ArgSpec] = {
    "shipped_decode_1": SHIPPED(sequences=decode(1, 256)),
    "shipped_decode_16": SHIPPED(sequences=decode(16, 256), dtype="bfloat16"),
    "shipped_prefill": SHIPPED(sequences=((256, 256),)),
    "shipped_mixed": SHIPPED(
        sequences=((1, 1), (1, 16), (1, 17), (37, 37), (5, 133), (1, 300)),
        padding_rows=18,
        padding_sequences=2,
        dtype="bfloat16",
    ),
    "shipped_long": SHIPPED(sequences=((1, 2048), (1, 40))),
    "llama3_8b_decode": LLAMA3_8B(sequences=decode(4, 700), dtype="bfloat16"),
    "llama3_8b_mixed": LLAMA3_8B(sequences=((1, 60), (40, 600), (4, 90)), padding_rows=3),
    "gemma2_decode": GEMMA2_2B(sequences=((1, 20), (1, 150)), window=64),
    "gemma2_prefill": GEMMA2_2B(sequences=((30, 90), (1, 90)), window=64, dtype="bfloat16"),
    "qwen2_mixed": QWEN2_HALF_B(sequences=((1, 31), (33, 64), (1, 65)), padding_sequences=1),
    "multi_head_verify": ArgSpec(N=12, K=12, H=64, page_size=16, sequences=((5, 5), (5, 77), (4, 260)), window=100),
    "one_kv_head_long": ArgSpec(N=4, K=1, H=256, page_size=64, sequences=((1, 1100), (3, 1030)), dtype="bfloat16"),
    "odd_sizes": ArgSpec(
        N=6, K=2, H=20, page_size=5, sequences=((1, 7), (9, 9), (2, 23)), padding_rows=1, softcap=20.0
    ),
    "narrow_pages": ArgSpec(N=8, K=4, H=32, page_size=16, sequences=((1, 50), (20, 33)), page_dtype="bfloat16"),
    "wide_pages": ArgSpec(
        N=4, K=2, H=80, page_size=8, sequences=((1, 50), (20, 33)), dtype="bfloat16", page_dtype="float32"
    ),
    "int8_mixed": LLAMA3_8B(
        sequences=((1, 60), (40, 600), (4, 90)), padding_rows=3, dtype="bfloat16", page_dtype="int8"
    ),
    "float8_decode": SHIPPED(sequences=decode(4, 300), dtype="bfloat16", page_dtype="float8_e4m3fn"),
    "float8_mixed": GEMMA2_2B(
        sequences=((30, 90), (1, 90), (5, 7)), window=64, padding_rows=2, page_dtype="float8_e4m3fn"
    ),
    "int4_decode": LLAMA3_8B(sequences=decode(4, 700), dtype="bfloat16", page_dtype="int4"),
    "int4_mixed": SHIPPED(
        sequences=((1, 1), (37, 37), (5, 133), (1, 300)), padding_rows=3, padding_sequences=1, page_dtype="int4"
    ),
    "int4_odd_sizes": ArgSpec(
        N=6, K=2, H=20, page_size=5, sequences=((1, 7), (9, 9), (2, 23)), window=8, softcap=20.0, page_dtype="int4"
    ),
    "int4_pages_of_a_tpu": LLAMA3_8B(
        sequences=((1, 130), (20, 150), (1, 9)), page_size=128, padding_rows=2, dtype="bfloat16", page_dtype="int4"
    ),
}


def _llama3_8b_decode(batch: int, page_dtype: str) -> dict[str, ArgSpec]:
    spec = LLAMA3_8B(sequences=decode(batch, 2048), dtype="bfloat16", page_dtype=page_dtype)
    return {f"llama3_8b_decode_{batch}_{page_dtype}": spec}


# Sizes to be timed, too large to be checked everywhere: those of accelerators, most wanted first, then those of a CPU.
SERVING_SPECS: dict[str, ArgSpec] = {
    **_llama3_8b_decode(64, "bfloat16"),
    "llama3_8b_prefill_4096": LLAMA3_8B(sequences=((4096, 4096),), dtype="bfloat16"),
    **_llama3_8b_decode(64, "int8"),
    **_llama3_8b_decode(64, "float8_e4m3fn"),
    **_llama3_8b_decode(64, "int4"),
    **_llama3_8b_decode(8, "bfloat16"),
    **_llama3_8b_decode(8, "int8"),
    **_llama3_8b_decode(8, "float8_e4m3fn"),
    **_llama3_8b_decode(8, "int4"),
    **{
        f"shipped_decode_{B}_{dtype}": SHIPPED(sequences=decode(B, 256), dtype=dtype)
        for dtype in ("float32", "bfloat16")
        for B in (1, 4, 16, 32)
    },
    **{
        f"shipped_prefill_{T}_{dtype}": SHIPPED(sequences=((T, T),), dtype=dtype)
        for dtype in ("float32", "bfloat16")
        for T in (256, 512)
    },
    **{f"m_decode_{B}": BENCH_M(sequences=decode(B, 192)) for B in (1, 16, 32)},
    "m_prefill_1024": BENCH_M(sequences=((1024, 1024),)),
    "m_mixed_2048": BENCH_M(sequences=((256, 2048), *decode(16, 1024))),
    "s_decode_1": BENCH_S(sequences=decode(1, 192)),
    **{f"long_4096_{dtype}": SHIPPED(sequences=((1, 4096),), dtype=dtype) for dtype in ("float32", "bfloat16")},
}
