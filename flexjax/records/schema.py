"""The result record: one flat row with dotted columns, as Open MLPerf names them.

Where Open MLPerf (flexaihq/flexbench, 2025) has a column for a fact, it has the same name here;
what it lacks is named in its manner, with the unit at the end.

Groups:
  datetime    when the run began, ISO 8601 in UTC; the one column without a group
  benchmark   name, version, validity, LoadGen's verdict, the whole config as JSON
  metrics     speed, latency, memory, start-up
  quality     bits per byte, ROUGE-L, …
  energy      joules
  cost        dollars
  model       name, architecture, parameters, data types
  software    versions, git revision, XLA flags
  system      processor, memory, accelerators
  technique   which side of a comparison, and everything it switched on
  submission  scenario, division, who and what for
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from flexjax.refusal import Refusal

GROUPS = (
    "benchmark",
    "metrics",
    "quality",
    "energy",
    "cost",
    "model",
    "software",
    "system",
    "technique",
    "submission",
)

Kind = Literal["measured", "estimated", "compiled"]
Value = str | bool | int | float | None

# Without these a row cannot be told from another, or judged.
REQUIRED = (
    "datetime",
    "benchmark.name",
    "benchmark.version",
    "benchmark.valid",
    "benchmark.invalid_reasons",
    "benchmark.loadgen_verdict",
    "benchmark.config_json",
    "software.git_revision",
    "software.xla_flags",
    "submission.scenario",
)

_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9][a-z0-9_]*)+")


@dataclasses.dataclass(frozen=True)
class Record:
    """One checked row.

    Invariants:
      - Every column but `datetime` stands in one of `GROUPS`; all of `REQUIRED` are there.
      - Values are str, bool, int, finite float or None; None is a figure that is not known.
      - Beside each number in `energy` and `cost` stands `<column>_kind`, and where there is any
        `metrics` column there is `metrics.kind`: "measured", "estimated" or "compiled". A metric
        that is of another kind than the rest has a `<column>_kind` of its own.
    """

    columns: Mapping[str, Value]

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> "Record":
        """The row of these columns, after the checks. NaN, a figure never observed, becomes None.

        Raises Refusal that names every column at fault.
        """
        row = {name: _plain(value) for name, value in columns.items()}
        faults = [fault for name, value in row.items() if (fault := _fault(name, value))]
        faults += [f"{name} is missing" for name in REQUIRED if name not in row]
        faults += _kind_faults(row)
        if faults:
            raise Refusal(f"A record cannot hold these columns: {'; '.join(faults)}. Groups: {', '.join(GROUPS)}.")
        return cls(row)


def to_json(value: Any) -> str:
    """Nested settings as one JSON string with sorted keys, for a `…_json` column."""
    return json.dumps(value, sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    item = getattr(value, "item", None)  # Numpy and JAX scalars.
    if callable(item) and getattr(value, "ndim", None) == 0:
        value = item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _fault(name: str, value: Any) -> str | None:
    if name != "datetime":
        if not _NAME.fullmatch(name):
            return f"{name!r} is no dotted name in lower case such as 'metrics.ttft_p99_ms'"
        if name.split(".")[0] not in GROUPS:
            return f"{name!r} stands in no known group"
    if not isinstance(value, Value):
        return f"{name} is a {type(value).__name__} and not a str, bool, int, float or None (nest as JSON in a string)"
    if isinstance(value, float) and math.isinf(value):
        return f"{name} is infinite"
    return None


def _kind_faults(row: Mapping[str, Any]) -> list[str]:
    kinds = get_args(Kind)
    faults = [
        f"{name} is {value!r} and not one of {', '.join(kinds)}"
        for name, value in row.items()
        if (name.endswith("_kind") or name == "metrics.kind") and value not in (*kinds, None)
    ]
    for name, value in row.items():
        if name.split(".")[0] in ("energy", "cost") and _is_number(value) and not row.get(f"{name}_kind"):
            faults.append(f"{name} has no {name}_kind beside it ({', '.join(kinds)})")
    if any(name.startswith("metrics.") for name in row) and not row.get("metrics.kind"):
        faults.append(f"metrics.kind is missing ({', '.join(kinds)})")
    return faults


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
