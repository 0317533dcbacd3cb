"""Block sizes of attention on TPUs while every sequence decodes."""

import functools
from typing import Any

import jax.numpy as jnp

from flexjax.kernels.case import Case
from flexjax.kernels.ragged_paged_attention import pallas_tpu, pallas_tpu_int4
from flexjax.kernels.ragged_paged_attention.api import OP, ragged_paged_attention
from flexjax.kernels.ragged_paged_attention.arg_specs import ARG_SPECS as OTHERS
from flexjax.kernels.ragged_paged_attention.arg_specs import ArgSpec
from flexjax.kernels.tuning import Block, Kernel, Loop, grid, on_chip

BLOCKS = (
    Block("BLOCK_KV", (256, 512, 1024, 2048, 4096), "Tokens of one sequence read at a time."),
    Block("MAX_BLOCK_PAGES", (4, 8, 32), "Pages of them at the most."),
    Block("BLOCK_DECODES", (4, 8, 32, 64), "Sequences decoded at a time."),
    Block("BLOCK_KV", (256, 1024, 2048), "Tokens of one sequence read at a time from int4 pages.", "pallas_tpu_int4"),
)
_LLAMA3_8B = functools.partial(ArgSpec, H=128, page_size=128, sequences=((1, 2048),) * 32, dtype="bfloat16")
SHAPES: dict[str, ArgSpec] = {
    "llama3_8b_of_8": _LLAMA3_8B(N=4, K=1),  # The part of one of eight devices,
    "llama3_8b_of_4": _LLAMA3_8B(N=8, K=2),  # and of one of four.
    "llama3_8b_int4_of_8": _LLAMA3_8B(N=4, K=1, page_dtype="int4"),
}


def case(shape: str) -> Case:
    spec = (SHAPES | OTHERS)[shape]

    def make() -> tuple[Any, ...]:
        q, k, v, pages, *batch = spec.arguments()
        return (q, pages), k, v, *batch

    def step(state, k, v, *batch):
        q, pages = state
        return ragged_paged_attention(q, k, v, pages, *batch, body="pallas_tpu", **spec.options)

    return Case(OP, shape, "pallas_tpu", make, step, spec.read_bytes, 2 * spec.products, spec.dtype)


def kernels(shape: str) -> tuple[Kernel, ...]:
    spec = SHAPES[shape]
    batch, dtype = len(spec.sequences), jnp.dtype(spec.dtype)
    context = max(total for _, total in spec.sequences)
    if spec.page_dtype == "int4":
        pages = max(1, pallas_tpu_int4.BLOCK_KV // spec.page_size)
        # Of a page's scales the copy is a loop, for the first block alone before the loop over the others.
        turns = Loop(-(-context // (pages * spec.page_size)), (Loop(1),) * pages)
        return (Kernel("int4_paged_attention", grid(batch, *[Loop(1 / batch)] * pages, turns), spec.read_bytes),)
    pages = min(-(-context // spec.page_size), pallas_tpu.MAX_BLOCK_PAGES)
    pages = min(pages, max(1, on_chip(pallas_tpu.BLOCK_KV) // spec.page_size))
    heads, _ = pallas_tpu.kernel.get_min_heads_per_blk(
        spec.N, 2 * spec.K, dtype, jnp.dtype(spec.page_dtype or spec.dtype)
    )
    parts, rows = spec.N // heads, -(-batch // min(batch, pallas_tpu.BLOCK_DECODES))
    sequences = Loop(batch / rows, (Loop(-(-context // (pages * spec.page_size))),))
    return (Kernel("ragged_paged_attention", grid(parts * rows, sequences), spec.read_bytes),)
