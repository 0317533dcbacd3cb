"""The limits of this machine that a kernel is held against, measured in the same run."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from flexjax.micro.matmul import matmuls
from flexjax.micro.memory import memory
from flexjax.micro.timing import measure

SIZES_MIB = (1, 4, 16, 64, 256)
MATRIX = 1024  # Rows and columns of the products whose rate is the peak.


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bytes a second by how many are read, since caches are faster than memory, and operations a second by dtype."""

    read: Mapping[int, float]  # MiB → bytes/s.
    products: Mapping[str, float]  # dtype → operations/s.

    def seconds(self, moved_bytes: float, operations: float, dtype: str) -> tuple[float, str]:
        """The least time of so much work, and what bounds it: "bytes" or "products"."""
        size = min(self.read, key=lambda mib: abs(math.log2(max(moved_bytes, 1) / 2**20 / mib)))
        # A small product does not fill a machine's threads; what more memory gives, less does too.
        rate = max(rate for mib, rate in self.read.items() if mib >= size)
        by_bytes, by_products = moved_bytes / rate, operations / self.products[dtype]
        return (by_bytes, "bytes") if by_bytes >= by_products else (by_products, "products")

    def __or__(self, other: "Limits") -> "Limits":
        """The higher of two measurements."""
        higher = lambda a, b: {key: max(a[key], b[key]) for key in a}
        return Limits(higher(self.read, other.read), higher(self.products, other.products))


def limits(dtypes: Sequence[str], rounds: int, round_s: float, sizes_mib: Sequence[int] = SIZES_MIB) -> Limits:
    """The best of several rounds: a limit that something else disturbed is none."""
    reads = [probe for probe in memory(sizes_mib) if probe.kind == "read"]
    best = {r.probe.name: r.probe.work / r.low for r in measure(reads, rounds, round_s)}
    products = measure(list(matmuls(dtypes, [MATRIX])), rounds, round_s)
    return Limits(
        read={size: best[probe.name] for size, probe in zip(sizes_mib, reads, strict=True)},
        products={r.probe.kind: r.probe.work / r.low for r in products},
    )
