"""The store of records: a folder of Parquet parts that only grows, queried by DuckDB.

Each `append` adds one part under a name of its own, written elsewhere first and then renamed, so
nothing is ever overwritten, processes may append at the same time, and a crash loses at most the
rows in flight. Later rows may bring new columns; older ones then hold NULL there.
"""

import datetime
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from flexjax.records.schema import Record, Value
from flexjax.refusal import Refusal


def append(path: Path, records: Sequence[Record]) -> Path | None:
    """Adds the rows to the store `path` (made if need be); returns the new part, None for no rows.

    Raises Refusal where a column holds another type of value than it does in the store.
    """
    if not records:
        return None
    table = _table([record.columns for record in records])
    path.mkdir(parents=True, exist_ok=True)
    _check_types(path, table)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    part = path / f"{stamp}-{secrets.token_hex(4)}.parquet"
    pending = part.with_suffix(".pending")
    with open(pending, "wb") as file:
        # A few rows a part: statistics and a second copy of the schema would outweigh them.
        pq.write_table(table, file, compression="zstd", write_statistics=False, store_schema=False)
        file.flush()
        os.fsync(file.fileno())
    os.rename(pending, part)
    return part


def query(path: Path, sql: str = "SELECT * FROM results") -> list[dict[str, Any]]:
    """Rows of a DuckDB query over the store, as dicts; the store is the table `results`.

    A column's name has dots, so SQL quotes it: `SELECT "metrics.ttft_p99_ms" FROM results`.
    """
    with _connect(path) as connection:
        return connection.sql(sql).to_arrow_table().to_pylist()


def read(path: Path) -> list[Record]:
    """Every record of the store, oldest first; columns that a row never had are left out."""
    rows = query(path, "SELECT * FROM results ORDER BY datetime")
    return [Record({name: value for name, value in row.items() if value is not None}) for row in rows]


def write_json(path: Path, records: Sequence[Record]) -> None:
    """Writes the rows as one JSON array of objects; a file that is there is replaced whole."""
    pending = path.with_suffix(".pending")
    pending.write_text(json.dumps([dict(record.columns) for record in records], indent=1) + "\n")
    os.replace(pending, path)


def _connect(path: Path) -> duckdb.DuckDBPyConnection:
    if not any(path.glob("*.parquet")):
        raise Refusal(f"There are no records in {path}: it is no folder of Parquet parts, or an empty one.")
    connection = duckdb.connect()
    source = str(path / "*.parquet").replace("'", "''")
    connection.execute(f"CREATE VIEW results AS SELECT * FROM read_parquet('{source}', union_by_name = true)")
    return connection


def _table(rows: Sequence[Mapping[str, Value]]) -> pa.Table:
    """The rows as a table. A column with no value in any of them is left out: it has no type yet."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        kinds = {_family(pa.array([value]).type) for value in values if value is not None}
        if len(kinds) > 1:
            raise Refusal(f"The column {name} must hold one type of value; its rows hold {', '.join(sorted(kinds))}.")
        if any(isinstance(value, float) for value in values):
            values = [None if value is None else float(value) for value in values]
        columns[name] = pa.array(values)
    return pa.table(columns)


def _check_types(path: Path, table: pa.Table) -> None:
    if not any(path.glob("*.parquet")):
        return
    with _connect(path) as connection:
        stored = connection.sql("SELECT * FROM results LIMIT 0").to_arrow_table().schema
    for field in table.schema:
        if field.name in stored.names:
            new, old = _family(field.type), _family(stored.field(field.name).type)
            if new != old:
                raise Refusal(
                    f"The column {field.name} holds {old} values in {path} and cannot take a {new}. Give the new "
                    "figure a name of its own, or append to another store."
                )


def _family(kind: pa.DataType) -> str:
    """What may share a column: DuckDB widens integers to floats, and nothing else."""
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return "text"
