"""Recorded request traces: when somebody's users asked, how long the prompts and the answers were.

Two published formats, told apart by the file name, each plain or gzipped:
  - `.csv`: Azure LLM inference trace 2023, `TIMESTAMP,ContextTokens,GeneratedTokens` with
    timestamps such as `2023-11-16 18:15:46.6805900`
    (https://github.com/Azure/AzurePublicDataset).
  - `.jsonl`: Mooncake, one object a line with `timestamp` (ms), `input_length`, `output_length`
    (https://github.com/kvcache-ai/Mooncake).
"""

import csv
import dataclasses
import datetime
import gzip
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from flexjax.refusal import Refusal

AZURE_COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]


@dataclasses.dataclass(frozen=True)
class TraceRow:
    time_s: float  # Since the trace's first request.
    input_tokens: int
    output_tokens: int


def read_trace(path: str | Path, limit: int | None = None) -> list[TraceRow]:
    """The first `limit` requests of a trace, in order of time, the first at 0 s.

    Refusal names file and line for a row that cannot be read.
    """
    path = Path(path)
    suffix = Path(path.name.removesuffix(".gz")).suffix
    parsers: dict[str, Callable[[Path, Iterable[str]], Iterator[TraceRow]]] = {".csv": _azure, ".jsonl": _mooncake}
    if suffix not in parsers:
        raise Refusal(
            f"A trace is a .csv (Azure 2023) or .jsonl (Mooncake) file, gzipped or not; got {path}. "
            "Rename the file or convert it."
        )
    with gzip.open(path, "rt") if path.name.endswith(".gz") else path.open() as lines:
        rows = list(itertools.islice(parsers[suffix](path, lines), limit))
    if not rows:
        raise Refusal(f"{path} holds no request.")
    rows.sort(key=lambda row: row.time_s)
    return [dataclasses.replace(row, time_s=row.time_s - rows[0].time_s) for row in rows]


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


def _azure(path: Path, lines: Iterable[str]) -> Iterator[TraceRow]:
    reader = csv.reader(lines)
    header = next(reader, [])
    if header != AZURE_COLUMNS:
        raise Refusal(f"{path}:1: the header must be {','.join(AZURE_COLUMNS)}; got {','.join(header)!r}.")
    for fields in reader:
        if not fields:
            continue
        try:
            stamp, context, generated = fields
            yield TraceRow(_seconds(stamp), _tokens(context), _tokens(generated))
        except ValueError as error:
            raise Refusal(f"{path}:{reader.line_num}: {','.join(fields)!r} is no {AZURE_COLUMNS}: {error}") from error


def _seconds(stamp: str) -> float:
    """Seconds since 1970; the trace has seven decimals, one more than datetime keeps."""
    whole, _, fraction = stamp.partition(".")
    base = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.UTC)
    return base.timestamp() + (float(f"0.{fraction}") if fraction else 0.0)


def _mooncake(path: Path, lines: Iterable[str]) -> Iterator[TraceRow]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield TraceRow(float(row["timestamp"]) / 1e3, _tokens(row["input_length"]), _tokens(row["output_length"]))
        except (ValueError, TypeError, KeyError) as error:
            raise Refusal(
                f"{path}:{number}: a row is an object with timestamp (ms), input_length and output_length; "
                f"got {line.strip()[:80]!r} ({error!r})."
            ) from error


def _tokens(value: str | int) -> int:
    count = int(value)
    if count < 0:
        raise Refusal(f"a token count is not negative; got {count}")
    return count
