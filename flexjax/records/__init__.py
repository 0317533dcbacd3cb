"""Result records: what a row holds (schema), where rows live (store), what a machine is (environment), and the row of a
job (job)."""

from flexjax.records.job import JobRecord as JobRecord
from flexjax.records.schema import GROUPS as GROUPS
from flexjax.records.schema import Kind as Kind
from flexjax.records.schema import Record as Record
from flexjax.records.schema import Value as Value
from flexjax.records.schema import to_json as to_json
from flexjax.records.store import append as append
from flexjax.records.store import prepare as prepare
from flexjax.records.store import query as query
from flexjax.records.store import read as read
from flexjax.records.store import read_json as read_json
from flexjax.records.store import write_json as write_json
