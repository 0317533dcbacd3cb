"""Ragged paged attention on a mesh: every device attends with its own heads to its own part of the pages."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from flexjax.hardware.sharding import SERVING, spec
from flexjax.kernels.ragged_paged_attention.pages import Int4Pages, Pages, sizes


def over_heads(
    attend: Callable[..., Any],
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    kv_pages: Pages,
    query_starts: Int[Array, "B+1"],
    kv_lengths: Int[Array, "B"],
    page_table: Int[Array, "B P"],
) -> tuple[Float[Array, "T N H"], Pages]:
    """`attend` of these arguments, on each device of the mesh in use with the heads that the rules give it.

    No body of the op can be split by XLA: without this, each would be given every head of every page. Heads
    that do not divide by the mesh (`flexjax.hardware.sharding.check` reports them) are computed on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    arguments = (q, k, v, kv_pages, query_starts, kv_lengths, page_table)
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:  # One device, or inside a shard_map already.
        return attend(*arguments)
    split = spec(("kv_heads",), sizes(kv_pages)[2:3], mesh, SERVING)
    heads = P(None, *split)
    # Of int4, values and scales alike: split with its head, also where the scales alone would divide otherwise.
    pages = heads if isinstance(kv_pages, Int4Pages) else P(None, None, *split)
    whole = P()
    return jax.shard_map(
        attend, in_specs=(heads, heads, heads, pages, whole, whole, whole), out_specs=(heads, pages), check_vma=False
    )(*arguments)
