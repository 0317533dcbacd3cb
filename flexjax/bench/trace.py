"""Recorded request traces: when somebody's users asked, how long the prompts and the answers were.

Two published formats, told apart by the file name, each plain or gzipped:
  - `.csv`: Azure LLM inference traces 2023 and 2024, `TIMESTAMP,ContextTokens,GeneratedTokens` with
    timestamps such as `2023-11-16 18:15:46.6805900` and `2024-05-10 00:00:00.009930+00:00`; one
    without an offset is UTC (https://github.com/Azure/AzurePublicDataset).
  - `.jsonl`: Mooncake, one object a line with `timestamp` (ms), `input_length`, `output_length`
    (https://github.com/kvcache-ai/Mooncake).
"""

import csv
import dataclasses
import datetime
import gzip
import itertools
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flexjax import files
from flexjax.refusal import Refusal

AZURE_COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]

_STAMP = re.compile(r"(\d{4}-\d\d-\d\d[ Tt]\d\d:\d\d:\d\d)(?:\.(\d+))? ?(?:[Zz]|UTC|([+-]\d\d(?::?\d\d)?))?", re.ASCII)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@dataclasses.dataclass(frozen=True)
class TraceRow:
    time_s: float  # Since the trace's first request.
    input_tokens: int
    output_tokens: int


class _Row(NamedTuple):
    """A request at its own time: whole nanoseconds, as a double that counts seconds since 1970 has only 2.4e-7 s."""

    time_ns: int
    input_tokens: int
    output_tokens: int


def read_trace(path: str | Path, limit: int | None = None) -> list[TraceRow]:
    """The requests in the first `limit` rows of a trace, in order of time, the first at 0 s.

    Refusal names the file, and the line of a row that cannot be read.
    """
    path = files.local(path, "A trace")
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    parsers: dict[str, Callable[[Path, Iterable[str]], Iterator[_Row]]] = {".csv": _azure, ".jsonl": _mooncake}
    if suffix not in parsers:
        raise Refusal(
            f"A trace is a .csv (Azure 2023 or 2024) or .jsonl (Mooncake) file, gzipped or not; got {path}. "
            "Rename the file or convert it."
        )
    zipped = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig") if zipped else path.open(encoding="utf-8-sig") as lines:
            rows = list(itertools.islice(parsers[suffix](path, lines), limit))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise Refusal(
            f"{path} cannot be read: {error}. A trace is UTF-8 text, and gzipped where its name ends in .gz."
        ) from error
    if not rows:
        raise Refusal(f"{path} holds no request.")
    rows.sort(key=lambda row: row.time_ns)
    start = rows[0].time_ns
    return [TraceRow((row.time_ns - start) / 1e9, row.input_tokens, row.output_tokens) for row in rows]


def scale(
    rows: Sequence[TraceRow], *, rate: float = 1.0, length: float = 1.0, max_input: int, max_output: int
) -> list[TraceRow]:
    """The trace with arrivals `rate` times as dense and lengths times `length`, clipped to 1..max."""
    if not (rate > 0 and length > 0 and max_input >= 1 and max_output >= 1):
        raise Refusal(
            "A trace is scaled by positive factors into at least one token; got "
            f"rate={rate}, length={length}, max_input={max_input}, max_output={max_output}."
        )
    fit = lambda n, most: min(max(round(n * length), 1), most)
    return [TraceRow(r.time_s / rate, fit(r.input_tokens, max_input), fit(r.output_tokens, max_output)) for r in rows]


def _azure(path: Path, lines: Iterable[str]) -> Iterator[_Row]:
    reader = csv.reader(lines)
    header = [name.strip() for name in next(reader, [])]
    if header != AZURE_COLUMNS:
        raise Refusal(f"{path}:1: the header must be {','.join(AZURE_COLUMNS)}; got {','.join(header)[:200]!r}.")
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield _azure_row(fields)
    except (ValueError, csv.Error) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise Refusal(f"{path}:{reader.line_num}: a row is {','.join(AZURE_COLUMNS)}: {error}.") from error


def _azure_row(fields: Sequence[str]) -> _Row:
    if len(fields) != len(AZURE_COLUMNS):
        raise ValueError(f"{','.join(fields)[:80]!r} has {len(fields)} fields")
    stamp, context, generated = fields
    return _Row(_nanoseconds(stamp), _tokens(context), _tokens(generated))


def _nanoseconds(stamp: str) -> int:
    """Since 1970; the trace of 2023 has seven decimals, one more than datetime keeps."""
    found = _STAMP.fullmatch(stamp.strip())
    if found is None:
        raise ValueError(f"{stamp!r} is no time such as 2024-05-10 00:00:00.009930+00:00")
    whole, fraction, offset = found.groups()
    time = datetime.datetime.fromisoformat(whole.upper() + (offset or "Z"))
    return (time - _EPOCH) // datetime.timedelta(seconds=1) * 10**9 + int((fraction or "")[:9].ljust(9, "0"))


def _mooncake(path: Path, lines: Iterable[str]) -> Iterator[_Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            time_ms = float(row["timestamp"])
            if not math.isfinite(time_ms):
                raise ValueError(f"the timestamp {time_ms} is not finite")
            yield _Row(round(time_ms * 1e6), _tokens(row["input_length"]), _tokens(row["output_length"]))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise Refusal(
                f"{path}:{number}: a row is an object with timestamp (ms), input_length and output_length; "
                f"got {line.strip()[:80]!r} ({error!r})."
            ) from error


def _tokens(value: Any) -> int:
    count = int(value)
    if isinstance(value, bool) or (isinstance(value, float) and count != value):
        raise ValueError(f"a token count is a whole number; got {value!r}")
    if count < 0:
        raise ValueError(f"a token count is not negative; got {count}")
    return count
