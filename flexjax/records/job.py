"""The record of a job that LoadGen does not drive: begun before anything is measured, kept at its end."""

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from flexjax.config import to_config_dict
from flexjax.records import environment, store
from flexjax.records.schema import Kind, Record, Value, to_json


@dataclasses.dataclass(frozen=True)
class JobRecord:
    """One row in `workdir`: in record.json alone, and added to the store results.parquet."""

    name: str
    version: str  # Of what the columns mean.
    config: Any  # The job's frozen dataclass.
    workdir: Path
    began: str  # ISO 8601 in UTC.

    @classmethod
    def begin(cls, name: str, version: str, config: Any, workdir: Path) -> Self:
        """Refusal where the store cannot take rows: before what they hold is measured."""
        store.prepare(workdir / "results.parquet")
        began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(name, version, config, workdir, began)

    def keep(self, columns: Mapping[str, Value], *, kind: Kind, fault: str = "") -> Record:
        """Stores the row of `columns` and of what the machine is; `fault` says what makes it invalid."""
        config = to_json(to_config_dict(self.config).to_dict())
        common = environment.of_job(self.name, self.version, config, self.began, fault)
        record = Record.of({**common, **columns, "metrics.kind": kind})
        store.write_json(self.workdir / "record.json", [record])
        store.append(self.workdir / "results.parquet", [record])
        return record
