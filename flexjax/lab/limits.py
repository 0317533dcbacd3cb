"""The limits of this machine that a kernel is held against, measured in the same run."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import jax

from flexjax.lab.matmul import matmuls
from flexjax.lab.memory import memory
from flexjax.lab.timing import Probe, Reading, measure

SIZES_MIB = (1, 4, 16, 64, 256)
# Rows and columns of the products whose rate is the peak: of the shapes tried on a CPU, these reach most; elsewhere,
# smaller ones would not outlast their dispatch.
MATRIX = {"cpu": (1024, 2048)}
MATRIX_ELSEWHERE = (8192, 8192)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bytes a second by how many are read, since caches are faster than memory, and copied (read and written); and
    operations a second by dtype. Each is that of the quickest way known here, XLA's or ours."""

    read: Mapping[int, float]  # MiB → bytes/s.
    copy: Mapping[int, float]  # MiB → bytes/s.
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
        return Limits(*(higher(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)))


def limits(dtypes: Sequence[str], rounds: int, round_s: float, sizes_mib: Sequence[int] = SIZES_MIB) -> Limits:
    """The best of several rounds: a limit that something else disturbed is none."""
    sized = [(size, probe) for size in sizes_mib for probe in memory([size])]
    moved = list(measure([probe for _, probe in sized], rounds, round_s))
    of_size = {size: [r for r, (its, _) in zip(moved, sized, strict=True) if its == size] for size in sizes_mib}
    products = list(measure(list(peaks(dtypes)), rounds, round_s))
    return Limits(
        read={size: _best(readings, "read") for size, readings in of_size.items()},
        copy={size: _best(readings, "copy") for size, readings in of_size.items()},
        products={dtype: _best(products, dtype) for dtype in dtypes},
    )


def peaks(dtypes: Sequence[str]) -> Iterator[Probe]:
    """Probes of the products that reach most on this platform."""
    rows, n = MATRIX.get(jax.default_backend(), MATRIX_ELSEWHERE)
    return matmuls(dtypes, [n], rows)


def _best(readings: Sequence[Reading], kind: str) -> float:
    return max(r.probe.work / r.low for r in readings if r.probe.kind == kind)
