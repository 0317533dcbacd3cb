"""The table of a benchmark in the terminal, 80 columns wide or more."""

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flexjax.bench.report import table
from flexjax.bench.result import BenchResult
from flexjax.bench.validity import limits_missed
from flexjax.hardware import chips

_WIDTH = 100
_KINDS = {"measured": "", "estimated": " est.", "compiled": " comp."}


def print_table(result: BenchResult, console: Console | None = None) -> None:
    """Prints each measure for both sides, ratio and spread; INVALID in red with every reason."""
    console = console or Console()
    side_a, side_b = result.sides
    width = min(console.width, _WIDTH)
    shown = Table(box=None, padding=(0, 1), header_style="bold", width=width, title_justify="left", title_style="bold")
    shown.title = f"{side_b} against {side_a}: medians over rounds; ratio above 1: {side_b} is better"
    shown.add_column("", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in (side_a, side_b):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    shown.add_column("ratio", justify="right", no_wrap=True)
    shown.add_column("spread", justify="right", no_wrap=True, style="dim")
    section = None
    for row in table.rows(result, chips.detect()):
        if row.section != section:
            section = row.section
            shown.add_row(Text(section, style="bold underline"))
        spread = row.note or table.spread(row)
        a, b = table.figure(row.a), table.figure(row.b)
        shown.add_row(f" {row.short}", a, b, f"{row.unit}{_KINDS[row.kind]}", _ratio(row), spread)
    console.print(shown)
    legend = "TTFT time to first token, TPOT time per output token, ITL inter-token latency, E2E end to end"
    console.print(Text(f"{legend}; from the scheduled arrival. est.: estimated, all else measured.", style="dim"))
    for note in result.notes:
        console.print(Text(f"• {note}", style="dim"))
    valid = sum(run.verdict.valid for run in result.runs)
    missed = sum(bool(limits_missed(run.scenario, run.loadgen)) for run in result.runs)
    limits = f", {missed} of them without their limits kept" if missed else ""
    style = "bold" if result.valid else "bold red"
    console.print(Text(f"{valid} of {len(result.runs)} runs valid{limits}", style=style))
    if not result.valid:
        reasons = Text("\n".join(f"• {reason}" for reason in result.reasons) or "no reason was given")
        console.print(Panel(reasons, title="INVALID", title_align="left", style="bold red", width=width))


def _ratio(row: table.Row) -> Text:
    if row.ratio is None:
        return Text("")
    return Text(table.times(row.ratio), style="bold" if row.ratio >= 1 else "yellow")
