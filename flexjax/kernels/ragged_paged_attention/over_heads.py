"""Ragged paged attention on a mesh: every device attends with its own heads to its own part of the pages."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Num

from flexjax.hardware.sharding import SERVING, spec


def over_heads(
    attend: Callable[..., Any],
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    kv_pages: Num[Array, "num_pages page_size heads 2 H"],
    query_starts: Int[Array, "B+1"],
    kv_lengths: Int[Array, "B"],
    page_table: Int[Array, "B P"],
) -> tuple[Float[Array, "T N H"], Num[Array, "num_pages page_size heads 2 H"]]:
    """`attend` of these arguments, on each device of the mesh in use with the heads that the rules give it.

    No body of the op can be split by XLA: without this, each would be given every head of every page. Heads
    that do not divide by the mesh (`flexjax.hardware.sharding.check` reports them) are computed on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    arguments = (q, k, v, kv_pages, query_starts, kv_lengths, page_table)
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:  # One device, or inside a shard_map already.
        return attend(*arguments)
    pages = spec(("pages", "page", "kv_heads", None, "head_dim"), kv_pages.shape, mesh, SERVING)
    heads = P(None, pages[2] if len(pages) > 2 else None)
    whole = P()
    return jax.shard_map(
        attend, in_specs=(heads, heads, heads, pages, whole, whole, whole), out_specs=(heads, pages), check_vma=False
    )(*arguments)
