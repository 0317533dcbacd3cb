"""What libtpu lists of a kernel: bundles of instructions, one a cycle, and the loops in which they stand."""

import dataclasses
import re
from collections.abc import Sequence

from flexjax.kernels import Loop

_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+([A-Z]{2})?\s*:\s*(>*)\s*\{")


@dataclasses.dataclass
class Bundles:
    """Of a kernel, or of one turn of a loop: its own, and the loops inside it in their order."""

    own: int = 0
    loops: list["Bundles"] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.own} bundles" + "".join(f" [{loop}]" for loop in self.loops)


def read(listing: str) -> Bundles:
    """Of a listing of final bundles. Branches that are not taken in every turn are counted as if they were."""
    kernel = Bundles()
    depth = 0
    for line in listing.splitlines():
        found = _BUNDLE.match(line)
        if not found:
            continue
        empty = line.rstrip().endswith("{}") and not found[2]  # In the shadow of a branch: still where that stands.
        depth = depth if empty else len(found[2])
        place = kernel
        for level in range(depth):
            if level == depth - 1 and found[1] == "LB":  # A loop's body begins.
                place.loops.append(Bundles())
            place = place.loops[-1]
        place.own += 1
    return kernel


def cycles(bundles: Bundles, loops: Sequence[Loop]) -> float | None:
    """Of the kernel, or of one turn, whose loops turn so often; None where it has other loops."""
    if len(bundles.loops) != len(loops):
        return None
    total = float(bundles.own)
    for inside, loop in zip(bundles.loops, loops, strict=True):
        turn = cycles(inside, loop.inner)
        if turn is None:
            return None
        total += loop.turns * turn
    return total
