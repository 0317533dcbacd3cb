"""Result records: what a row holds (schema), where rows live (store), what a machine is (environment)."""

from flexjax.records.schema import GROUPS, Kind, Record, to_json
from flexjax.records.store import append, prepare, query, read, read_json, write_json

__all__ = ["GROUPS", "Kind", "Record", "to_json", "append", "prepare", "query", "read", "read_json", "write_json"]
from flexjax.records.schema import Value as Value
