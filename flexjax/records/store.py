"""The store of records: a folder of Parquet parts that only grows, queried by DuckDB.

Each `append` adds one part under a name of its own, written elsewhere first and then renamed, so
nothing is ever overwritten, processes may append at the same time, and a crash loses at most the
rows in flight. A part that was cut or changed is found by the digest in its name, and left out.
Later rows may bring new columns; older ones then hold NULL there.
"""

import contextlib
import datetime
import hashlib
import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from flexjax import files
from flexjax.records.schema import Record, Value
from flexjax.refusal import Refusal

_DIGITS = 16
_DIGEST = re.compile(rf"-([0-9a-f]{{{_DIGITS}}})\.parquet$")


def prepare(path: Path) -> None:
    """Sees that the store `path` can take rows: called before what is to be stored is measured.

    A part that cannot be read is renamed, with a warning; the rows of the others stay. Refusal where `path` is no
    folder that can be written in.
    """
    if path.is_file():
        raise Refusal(
            f"The store {path} must be a folder of Parquet parts; it is a file. Move it away, or give another workdir."
        )
    if files.local(path, "The store").exists():
        files.make_folder(path, "The store")
    for part, fault in _parts(path)[1].items():
        with contextlib.suppress(FileNotFoundError):  # Another process has renamed it.
            logging.warning("A part of the store cannot be read and is now %s: %s", files.set_aside(part), fault)


def append(path: Path, records: Sequence[Record]) -> Path | None:
    """Adds the rows to the store `path` (made if need be); returns the new part, None for no rows.

    Raises Refusal where a column holds another type of value than it does in the store.
    """
    if not records:
        return None
    table = _table([record.columns for record in records])
    prepare(path)
    files.make_folder(path, "The store")
    _check_types(path, table)
    content = io.BytesIO()
    # A few rows a part: statistics and a second copy of the schema would outweigh them.
    pq.write_table(table, content, compression="zstd", write_statistics=False, store_schema=False)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    part = path / f"{stamp}-{_digest(content.getvalue())}.parquet"
    files.write_bytes(part, content.getvalue())
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
    files.write_text(path, json.dumps([dict(record.columns) for record in records], indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds; None, with a warning, where it is missing or cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logging.warning("%s cannot be read: %s", path, error)
        return None


def _connect(path: Path) -> duckdb.DuckDBPyConnection:
    files.local(path, "A store")
    whole, broken = _parts(path)
    for part, fault in broken.items():
        logging.warning("%s cannot be read and is left out: %s", part, fault)
    if not whole:
        raise Refusal(f"There are no records in {path}: it is no folder of Parquet parts, or an empty one.")
    connection = duckdb.connect()
    sources = ", ".join("'" + str(part).replace("'", "''") + "'" for part in whole)
    connection.execute(f"CREATE VIEW results AS SELECT * FROM read_parquet([{sources}], union_by_name = true)")
    return connection


def _parts(path: Path) -> tuple[list[Path], dict[Path, str]]:
    """The parts that can be read, and those that cannot, with the reason.

    A part's name ends in the digest of its bytes; of one without, from an older version, the footer is read.
    """
    whole, broken = [], {}
    for part in sorted(path.glob("*.parquet")):
        digest = _DIGEST.search(part.name)
        try:
            if digest is None:
                pq.read_schema(part)
            elif _digest(part.read_bytes()) != digest[1]:
                raise OSError("its bytes have changed since it was written")
            whole.append(part)
        except (pa.ArrowException, OSError) as error:
            broken[part] = " ".join(str(error).split())
    return whole, broken


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


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
