"""Named shapes of ragged paged attention, the same for tests and benchmark."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class ArgSpec:
    """One call: heads, pages, and for each sequence its (new tokens, tokens after the step)."""

    N: int
    K: int
    H: int
    page_size: int  # tokens
    sequences: tuple[tuple[int, int], ...]
    dtype: str = "float32"  # Of queries, new keys and values.
    page_dtype: str | None = None  # None: as `dtype`.
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
        return seen * self.K * 2 * self.H * jnp.dtype(self.page_dtype or self.dtype).itemsize

    @property
    def products(self) -> int:
        """Multiply-adds of scores and of weighted values, over the pairs that the masks leave."""
        pairs = 0
        for new, total in self.sequences:
            seen = np.arange(total - new + 1, total + 1)
            pairs += int(np.minimum(seen, self.window or total).sum())
        return 2 * pairs * self.N * self.H

    def arguments(self, seed: int = 0) -> tuple[jax.Array, ...]:
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
            normal(num_pages, self.page_size, self.K, 2, self.H, dtype=self.page_dtype or self.dtype),
            jnp.asarray(ends, jnp.int32),
            jnp.asarray(lengths, jnp.int32),
            jnp.asarray(table, jnp.int32),
        )


def decode(batch: int, length: int) -> tuple[tuple[int, int], ...]:
    """`batch` sequences of one new token each, of lengths that differ a little around `length`."""
    return tuple((1, length - 7 * (b % 5)) for b in range(batch))


SHIPPED = functools.partial(ArgSpec, N=8, K=4, H=32, page_size=16)  # The model that the project ships.
LLAMA3_8B = functools.partial(ArgSpec, N=32, K=8, H=128, page_size=16)
GEMMA2_2B = functools.partial(ArgSpec, N=8, K=4, H=256, page_size=16, softcap=50.0)
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
}
