"""The first rows of a benchmark in the terminal, 80 columns wide or more; the rest stands in the report."""

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flexjax.bench.report import table
from flexjax.bench.result import BenchResult
from flexjax.bench.validity import limits_missed
from flexjax.hardware import chips

_WIDTH = 100
_NOTE_LINES = 6
_NAME_WIDTH = 22  # Of a side in the ladder; a longer name is cut.
_KINDS = {"measured": "", "estimated": " est.", "compiled": " comp."}


def print_table(result: BenchResult, console: Console | None = None) -> None:
    """Prints the ladder where there are more than two sides, then at most 12 rows of the last side.

    Below them: how many rows stand in the report, notes, disturbed runs, duration; INVALID in red with every reason.
    """
    console = console or Console()
    width = min(console.width, _WIDTH)
    rows = table.rows(result, chips.detect())
    last = result.sides[-1]
    if len(result.sides) > 2:
        console.print(_ladder(result, rows))
        console.print()
    shown = [row for row in table.headline(rows) if row.side == last]
    console.print(_headline(result, shown))
    console.print(Text(_legend(shown, len(rows) - len(shown)), style="dim"))
    _print_notes(result, console)
    console.print(Text(table.disturbed(result), style="dim"))
    runs = table.measured(result)
    missed = sum(bool(limits_missed(run.kind, run.loadgen)) for run in runs)
    limits = f", {missed} of them without their limits kept" if missed else ""
    took = table.duration(result.wall_s)
    verdict = (
        f"{sum(run.verdict.valid for run in runs)} of {len(runs)} runs valid{limits}{f', in {took}' if took else ''}"
    )
    console.print(Text(verdict, style="bold" if result.valid else "bold red"))
    if not result.valid:
        reasons = Text("\n".join(f"• {reason}" for reason in result.reasons) or "no reason was given")
        console.print(Panel(reasons, title="INVALID", title_align="left", style="bold red", width=width))


def _table(title: str) -> Table:
    return Table(
        title=title,
        box=None,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        header_style="bold",
        title_justify="left",
        title_style="bold",
    )


def _ladder(result: BenchResult, rows: tuple[table.Row, ...]) -> Table:
    found = table.ladder(result, rows)
    shown = _table("Every side, the baseline first; medians over rounds")
    shown.add_column("", no_wrap=True, overflow="ellipsis", max_width=_NAME_WIDTH)
    kept = [i for i, heading in enumerate(found.headings) if heading != "95 %"]  # It has no room here.
    for i in kept:
        shown.add_column(Text(found.headings[i]), justify="right", vertical="bottom", min_width=6)
    for side, cells in found.rungs:
        shown.add_row(Text(side), *(cells[i] for i in kept))
    return shown


def _headline(result: BenchResult, rows: list[table.Row]) -> Table:
    side = result.sides[-1]
    shown = _table(
        f"{side} against {result.baseline}: medians over rounds; ratio above 1: {side} is better; "
        "an interval that holds 1 shows no difference"
    )
    shown.add_column("", no_wrap=True, overflow="ellipsis")
    for name in (result.baseline, side):
        shown.add_column(Text(name), justify="right", min_width=9, max_width=11, overflow="fold")
    shown.add_column("", no_wrap=True)
    shown.add_column("ratio", justify="right", no_wrap=True)
    shown.add_column("95 %", justify="right", no_wrap=True, style="dim")
    for row in rows:
        values = table.figure(row.baseline_value), table.figure(row.value)
        shown.add_row(Text(row.short), *values, f"{row.unit}{_KINDS[row.kind]}", _ratio(row), table.between(row))
    return shown


def _ratio(row: table.Row) -> Text:
    """Bold where a difference was shown, yellow where it is against the side."""
    if row.ratio is None:
        return Text("")
    worse = row.ratio < 1 and (row.interval is None or row.differs)
    return Text(table.times(row.ratio), style="yellow" if worse else "bold" if row.differs else "")


def _legend(shown: list[table.Row], more: int) -> str:
    bracket = any(row.section == table.LARGEST_RATE and row.interval for row in shown)
    return (
        f"{more} more rows stand in report.html. TTFT: time to first token, TPOT: time per output token, from the "
        f"scheduled arrival.{' The range of the largest rate is the bracket of its search.' if bracket else ''}"
    )


def _print_notes(result: BenchResult, console: Console) -> None:
    """As many notes as fit a few lines, the last of which says how many more there are."""
    lines = [Text(f"• {note}", style="dim").wrap(console, console.width) for note in result.notes]
    shown, used = 0, 0
    for i, wrapped in enumerate(lines):
        more = i + 1 < len(lines)
        if used + len(wrapped) + more > _NOTE_LINES:
            break
        shown, used = i + 1, used + len(wrapped)
    for wrapped in lines[:shown]:
        console.print(*wrapped, sep="\n")
    if shown < len(lines):
        console.print(Text(f"• {len(lines) - shown} more notes stand in report.html", style="dim"))
