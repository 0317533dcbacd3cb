"""What is made of a benchmark's result: the terminal's table, the HTML report with its plots, the record's rows."""

from flexjax.bench.report.page import write_report
from flexjax.bench.report.rows import records_of
from flexjax.bench.report.terminal import print_table

__all__ = ["print_table", "write_report", "records_of"]
