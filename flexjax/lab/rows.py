"""The sheet of results: one row a body and shape, written as soon as it is known."""

import csv
import dataclasses
from pathlib import Path
from typing import Literal, Self

from flexjax.lab.plan import Goal

type Outcome = Literal["ok", "wrong", "refused", "failed", "left out"]


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the GPU reaches: bytes that it copies (read and written) and operations of bfloat16 products, a second."""

    device: str
    copies: float
    products: float


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of one body on one shape.

    `outcome`: "ok"; "wrong", a value too far from the right one; "refused", the body does not serve the shape, or its
    library is not here; "failed", it raised, crashed or hung; "left out", there was no time. `note` says why. Values
    have `error` (of the largest value) and `allowed`, times the rest, of one call.
    """

    what: Literal["times", "value"]
    op: str
    shape: str
    body: str
    outcome: Outcome = "ok"
    note: str = ""
    error: float | None = None
    allowed: float | None = None
    median_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    moved_bytes: float | None = None
    operations: float | None = None
    goal: Goal | None = None  # Of our bodies.

    def shares(self, machine: Machine | None) -> dict[str, float]:
        """Of the bytes that the machine copies, and of its products; none without a time or a machine."""
        if self.median_s is None or self.moved_bytes is None or self.operations is None or machine is None:
            return {}
        return {
            "copies": self.moved_bytes / self.median_s / machine.copies,
            "products": self.operations / self.median_s / machine.products,
        }

    def met(self, machine: Machine | None) -> bool | None:
        """Whether the goal is met; None without a goal, and where that is not known: left out, or no machine. A body
        that was refused or failed meets none."""
        if self.goal is None or machine is None or self.outcome == "left out":
            return None
        return self.shares(machine).get(self.goal.of, 0.0) >= self.goal.share


class Sheet:
    """A CSV file of rows, each on disk before the next is begun: a run that is killed keeps what it found. Every row
    says when and with what software it was made."""

    COLUMNS = (
        *("date", "software", "device", "copy_bytes_per_s", "bfloat16_operations_per_s"),
        *(field.name for field in dataclasses.fields(Row)),
        *("of_copies", "of_products", "met"),
    )

    def __init__(self, path: Path, date: str, software: str):
        self._made = {"date": date, "software": software}
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, self.COLUMNS)
        self._writer.writeheader()
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, row: Row, machine: Machine | None) -> None:
        fields = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
        shares = {f"of_{limit}": share for limit, share in row.shares(machine).items()}
        if machine is not None:
            fields |= {
                "device": machine.device,
                "copy_bytes_per_s": machine.copies,
                "bfloat16_operations_per_s": machine.products,
            }
        self._writer.writerow({**self._made, **fields, **shares, "met": row.met(machine)})
        self._file.flush()
