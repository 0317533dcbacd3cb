"""Ragged paged attention: the contract, and which body serves it."""

import functools

import jax
from jaxtyping import Array, Float, Int

from flexjax.kernels import registry
from flexjax.kernels.over_axis import copied, over_axis
from flexjax.kernels.ragged_paged_attention import base, cpu, pallas_tpu, xla
from flexjax.kernels.ragged_paged_attention.pages import LARGEST, Int4Pages, Pages, ScaledPages, dtype_name, sizes

OP = "ragged_paged_attention"
BODIES = {
    "base": base.ragged_paged_attention,
    "xla": xla.ragged_paged_attention,
    "cpu": cpu.ragged_paged_attention,
    "pallas_tpu": pallas_tpu.ragged_paged_attention,
    "triton_gpu": registry.on_demand(
        "flexjax.kernels.ragged_paged_attention.triton_gpu", OP, package="jax_triton", extra="cuda"
    ),
}
# `base` is the formula to test against, too slow to fall back on.
ORDER = {"cpu": ("cpu", "xla"), "tpu": ("pallas_tpu", "xla"), "gpu": ("triton_gpu", "xla")}
ANYWHERE = ("xla",)


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
    body: str | None = None,
) -> tuple[Float[Array, "T N H"], Pages]:
    """Attention of every row over its own sequence's pages, after the new keys and values are written there.

    The batch is laid out as `flexjax.model.RaggedBatch` says: sequence b owns the rows
    `query_starts[b]:query_starts[b + 1]`, the last of them at position `kv_lengths[b] - 1`. Equivalent,
    for the row of sequence b at position p and query head n, with kv head m = n // (N // K), to

        for every row: kv_pages[page_table[b, p // page_size], p % page_size] = k, v   # in the pages' dtype
        s = kv_pages[page_table[b]].reshape(-1, K, 2, H)        # positions 0, 1, 2 …
        score = scale * s[:, m, 0] @ q                          # softcap * tanh(score / softcap), if given
        out = softmax(score over p - window < position <= p) @ s[:, m, 1]

    with scores and softmax in float32 and the result in q's dtype. Rows from `query_starts[B]` on are
    padding: they give zeros and write nothing; nor does a sequence without rows. No page is touched
    but those of the new rows. Under jit, kv_pages is updated in place where its buffer is donated.

    Pages are float32, bfloat16 or float16; `ScaledPages` in int8 or float8_e4m3fn, which hold the nearest to x / s
    with the power of two s of x's kv head and channel, and where x / s is larger the largest of the dtype, which is
    counted; or `Int4Pages`, which hold round(x / s), halves to even, with a scale s = max|x| / 7 of its own for every
    key and value vector, kept in bfloat16 (x / s is x times the float32 1 / s).

    On a mesh (`jax.set_mesh`) every device computes the heads that it holds. The pages may hold each kv head
    several times in a row (K is then a multiple of k's and v's), so that more devices than kv heads can share.

    Args:
      scale: of the scores, usually H**-0.5.
      window: positions that a row sees, itself included; None sees all up to it.
      softcap: bound of the scores; None has none.
      max_query_len: bound of the rows of any sequence; 1 promises pure decoding.
      body: exactly this one of `BODIES`. By default the environment's, else the first of the
        platform's order that can serve; `flexjax.kernels.bodies_used` tells which did and why.

    The platform is known while tracing: that of the abstract mesh in use (a compile for a described
    chip), else `jax.default_backend()`. `lax.platform_dependent` would trace every platform's body
    into each program, and none could be recorded as the one that ran.

    Raises:
      ValueError: shapes that do not fit each other, or an option out of range.
      NotImplementedError: no body, or not the one asked for, serves the call.
    """
    _check(q, k, v, kv_pages, query_starts, kv_lengths, page_table, window, softcap, max_query_len)
    if (dtype_name(kv_pages) in LARGEST) != isinstance(kv_pages, ScaledPages):
        raise ValueError(
            f"Pages of {' and '.join(LARGEST)}, and no others, are ScaledPages; got {type(kv_pages).__name__} of "
            f"{dtype_name(kv_pages)}."
        )
    heads = sizes(kv_pages)[2]
    k, v = (copied(x, 1, heads // k.shape[1]) for x in (k, v))
    serve = functools.partial(
        registry.serve,
        OP,
        BODIES,
        ORDER.get(registry.platform(), ANYWHERE),
        body,
        scale=scale,
        window=window,
        softcap=softcap,
        max_query_len=max_query_len,
    )
    leaves, structure = jax.tree.flatten(kv_pages)

    def attend(q, k, v, query_starts, kv_lengths, page_table, *leaves):
        pages = jax.tree.unflatten(structure, leaves)
        out, pages = serve(q, k, v, pages, query_starts, kv_lengths, page_table)
        return out, *jax.tree.leaves(pages)

    out, *leaves = over_axis(
        attend,
        "kv_heads",
        heads,
        (q, k, v, query_starts, kv_lengths, page_table, *leaves),
        (1, 1, 1, None, None, None, *_head_places(kv_pages)),
        (1, *_head_places(kv_pages)),
    )
    return out, jax.tree.unflatten(structure, leaves)


def _head_places(kv_pages: Pages) -> tuple[int, ...]:
    """Where each array of the pages has its kv heads. Those of int4 are split with their head, values and scales
    alike, also where the scales alone would divide otherwise."""
    if isinstance(kv_pages, Int4Pages):
        return 1, 1
    return (2, 0, 0) if isinstance(kv_pages, ScaledPages) else (2,)


def _check(q, k, v, kv_pages, query_starts, kv_lengths, page_table, window, softcap, max_query_len) -> None:
    shapes = [leaf.shape for leaf in jax.tree.leaves(kv_pages)]
    ranks = [4, 3] if isinstance(kv_pages, Int4Pages) else [5, 3, 2] if isinstance(kv_pages, ScaledPages) else [5]
    if q.ndim != 3 or k.ndim != 3 or [len(shape) for shape in shapes] != ranks or page_table.ndim != 2:
        raise ValueError(
            "q is [T, N, H], k and v [T, K, H], kv_pages [num_pages, page_size, K, 2, H] (int8 and float8: beside it "
            "scales [K, 2, H] and counts [K, 2]; int4: values [num_pages, K, page_size, H] and scales "
            "[num_pages, 2 K, page_size]), page_table [B, P]; got "
            f"q {q.shape}, k {k.shape}, kv_pages {' and '.join(map(str, shapes))}, page_table {page_table.shape}."
        )
    (T, N, H), K, B = q.shape, k.shape[1], page_table.shape[0]
    if N % K:
        raise ValueError(f"Query heads come in equal groups, one a kv head: N must be a multiple of K; N={N}, K={K}.")
    num_pages, page_size, heads, _ = sizes(kv_pages)
    if heads % K or N % heads:
        raise ValueError(
            "Pages hold each kv head once, or as often as devices that share its query heads: their heads must be a "
            f"multiple of K and divide N; they have {heads}, with K={K}, N={N}."
        )
    wanted = {
        "k": (k.shape, (T, K, H)),
        "v": (v.shape, (T, K, H)),
        "query_starts": (query_starts.shape, (B + 1,)),
        "kv_lengths": (kv_lengths.shape, (B,)),
    }
    if isinstance(kv_pages, Int4Pages):
        wanted["kv_pages.values"] = (kv_pages.values.shape[3:], (H,))
        wanted["kv_pages.scales"] = (kv_pages.scales.shape, (num_pages, 2 * heads, page_size))
    elif isinstance(kv_pages, ScaledPages):
        wanted["kv_pages.values"] = (kv_pages.values.shape[3:], (2, H))
        wanted["kv_pages.scales"] = (kv_pages.scales.shape, (heads, 2, H))
        wanted["kv_pages.clipped"] = (kv_pages.clipped.shape, (heads, 2))
    else:
        wanted["kv_pages"] = (kv_pages.shape[3:], (2, H))
    for name, (shape, want) in wanted.items():
        if shape != want:
            raise ValueError(f"{name} must have shape {want} beside q {q.shape} and B={B}; it has {shape}.")
    for name, value in (("window", window), ("softcap", softcap), ("max_query_len", max_query_len)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive{'' if name == 'max_query_len' else ' or None'}; got {value}.")
