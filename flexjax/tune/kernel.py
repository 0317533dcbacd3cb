"""A kernel's block sizes by the instructions that its own compiler schedules, for a TPU that need not be here.

A Pallas kernel tells XLA nothing but a declared cost, which is the same for every block size. libtpu lists, when it is
asked, the bundles of instructions of each kernel and how deep in its loops each stands. Those times the turns of the
loops are its cycles, were nothing ever waited for; memory runs beside it, so that the slower of the two counts.
"""

import dataclasses
import functools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flexjax.hardware import chips, topology
from flexjax.hardware.roofline import Limits
from flexjax.kernels.ragged_paged_attention import LARGEST, pallas_tpu
from flexjax.tune.blocks import block_sizes
from flexjax.tune.evaluate import Candidate, Cost, Refused

_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:\s*(>*)\s*\{")


@dataclasses.dataclass(frozen=True)
class Attention:
    """Ragged paged attention of one layer on one device, while every sequence decodes."""

    chip: str
    batch: int
    context: int  # tokens
    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: str = "bfloat16"
    cache_dtype: str = "bfloat16"

    @property
    def turns(self) -> list[int]:
        """Of the kernel's loops, from the outermost on: blocks of rows, where there are several; sequences; blocks of
        keys and values."""
        rows = min(self.batch, pallas_tpu.BLOCK_DECODES)
        pages = min(-(-self.context // self.page_size), pallas_tpu.MAX_BLOCK_PAGES)
        pages = min(pages, max(1, pallas_tpu.BLOCK_KV // self.page_size))
        heads, _ = pallas_tpu.kernel.get_min_heads_per_blk(
            self.num_heads, 2 * self.num_kv_heads, jnp.dtype(self.dtype), jnp.dtype(self.cache_dtype)
        )
        parts = self.num_heads // heads
        blocks = -(-self.context // (pages * self.page_size))
        grid = parts * -(-self.batch // rows)
        return [1, *([grid] if grid > 1 else []), parts * self.batch, parts * self.batch * blocks]

    @property
    def read_bytes(self) -> int:
        """Every key and value once."""
        return self.batch * self.context * 2 * self.num_kv_heads * self.head_dim * jnp.dtype(self.cache_dtype).itemsize


class CompiledKernel:
    """Static time of attention in one layer: what the compiler schedules, never a speed seen. Waiting for memory that
    nothing hides, a kernel's start and what the chip cannot issue as planned are not in it."""

    kind: Literal["compiled"] = "compiled"
    unit = "µs a layer"

    def __init__(self, attention: Attention):
        self._attention = attention
        self._limits = Limits.of(chips.find(attention.chip), attention.dtype)
        self._default = self._microseconds({})

    def __call__(self, candidate: Candidate, effort: int = 1) -> Cost:
        value = self._microseconds(candidate)
        ratio = value / self._default
        return Cost(ratio, ratio, ratio, value, self._default, None)

    def _microseconds(self, candidate: Candidate) -> float:
        with block_sizes(candidate):
            turns = self._attention.turns
        bundles = _bundles_of(self._attention, candidate)
        if len(bundles) != len(turns):
            reason = f"its loops are {len(bundles) - 1} deep, where the turns of {len(turns) - 1} are known"
            if not candidate:
                raise NotImplementedError(
                    f"The cycles of a kernel are those of loops whose turns are known; of {self._attention} {reason}. "
                    "Search the whole step instead (evaluate='compiled'), or on a chip (measured)."
                )
            raise Refused(reason)
        cycles = sum(count * turn for count, turn in zip(bundles, turns, strict=True))
        read = self._attention.read_bytes / self._limits.bytes_per_s
        return 1e6 * max(cycles / self._limits.clock_hz, read)


def by_depth(listing: str) -> list[int]:
    """Bundles outside every loop, in one loop, in two …, of a listing of final bundles.

    Branches that are not taken in every turn are counted as if they were.
    """
    counts: dict[int, int] = {}
    depth = 0
    for line in listing.splitlines():
        found = _BUNDLE.match(line)
        if not found:
            continue
        empty = line.rstrip().endswith("{}") and not found[1]  # In the shadow of a branch: still where that stands.
        depth = depth if empty else len(found[1])
        counts[depth] = counts.get(depth, 0) + 1
    return [counts.get(d, 0) for d in range(max(counts) + 1)] if counts else []


def _bundles_of(attention: Attention, candidate: Candidate) -> list[int]:
    """In a process of its own: libtpu reads where to write its listings once, when it starts."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        asked = {"attention": dataclasses.asdict(attention), "candidate": dict(candidate)}
        done = subprocess.run(
            [sys.executable, "-m", "flexjax.tune.kernel"],
            input=json.dumps(asked),
            env={**os.environ, "JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": flags},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
            if not candidate:
                raise ValueError(f"The kernel does not compile for {attention.chip}: {reason}")
            raise Refused(reason)
        listings = sorted(Path(folder).glob("*-ragged_paged_attention*-final_bundles.txt"))
        listings = [path for path in listings if "schedule-analysis" not in path.name]
        if len(listings) != 1:
            raise RuntimeError(f"libtpu lists a kernel's bundles once; it wrote {[p.name for p in listings]}.")
        return by_depth(listings[0].read_text())


def _compile(attention: Attention, candidate: Candidate) -> None:
    device = topology.devices(chips.find(attention.chip), _one_host(attention.chip))[0]
    mesh = Mesh(np.array([device]), ("tensor",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())

    def array(*shape: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=whole)

    batch, pages = attention.batch, -(-attention.context // attention.page_size)
    heads, kv_heads, head_dim = attention.num_heads, attention.num_kv_heads, attention.head_dim
    new = array(batch, kv_heads, head_dim, dtype=attention.dtype)
    pool = array(batch * pages + 1, attention.page_size, kv_heads, 2, head_dim, dtype=attention.cache_dtype)
    attend = functools.partial(
        pallas_tpu.ragged_paged_attention,
        scale=1 / math.sqrt(head_dim),
        max_query_len=1,
        kv_scale=1.0 if attention.cache_dtype in LARGEST else None,
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), block_sizes(candidate):
        lowered = jax.jit(attend, donate_argnums=3).lower(
            array(batch, heads, head_dim, dtype=attention.dtype), new, new, pool,
            array(batch + 1), array(batch), array(batch, pages),
        )  # fmt: skip
    lowered.compile()


def _one_host(chip: str) -> str:
    compiler = chips.find(chip).compiler
    assert compiler is not None
    sizes: Sequence[int] = compiler["host"]
    return "x".join(map(str, sizes))


if __name__ == "__main__":
    given = json.load(sys.stdin)
    _compile(Attention(**given["attention"]), given["candidate"])
