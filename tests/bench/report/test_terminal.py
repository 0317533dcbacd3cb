import dataclasses
import io
import re

import pytest
from rich.console import Console

from flexjax.bench.interval import Interval
from flexjax.bench.report import print_table, table
from flexjax.hardware import chips


def printed(result, width=80, colour=False):
    out = io.StringIO()
    print_table(
        result, Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None)
    )
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("name", ["result", "ladder"])
def test_it_fits_and_cuts_nothing_off(name, width, request):
    text = printed(request.getfixturevalue(name), width)
    assert "…" not in text
    assert all(len(line.rstrip()) <= width for line in text.splitlines())


def test_long_names_of_sides_are_folded(result):
    """A server is called by its URL; its column is as narrow as any other's, and all of it can be read."""
    url = "http://127.0.0.1:8000/v1"
    name = lambda side: url if side == "optimised" else side
    renamed = dataclasses.replace(
        result,
        sides=("stock", url),
        runs=tuple(dataclasses.replace(run, side=name(run.side)) for run in result.runs),
        comparisons=tuple(dataclasses.replace(c, side=name(c.side)) for c in result.comparisons),
        quality=tuple(dataclasses.replace(q, side=name(q.side)) for q in result.quality),
        searches=tuple(dataclasses.replace(s, side=name(s.side)) for s in result.searches),
    )
    text = printed(renamed)
    assert "…" not in text and all(len(line.rstrip()) <= 80 for line in text.splitlines())


def test_it_shows_twelve_rows_with_both_sides_ratio_and_interval(result):
    server = next(c for c in result.comparisons if (c.scenario, c.measure) == ("Server", "tpot_p99_ms"))
    text = printed(result)
    lines = text[: text.index("more rows stand in report.html")].splitlines()
    assert len([line for line in lines if re.search(r"\d\.\d|\d,\d|\d{3}", line)]) == 12
    line = next(line for line in lines if line.startswith("Server TPOT p99"))
    assert f"{server.baseline_value:.3f}" in line and f"{server.value:.3f}" in line
    assert f"{server.ratio:.2f}×" in line and f"{server.interval.low:.2f}–{server.interval.high:.1f}" in line
    more = len(table.rows(result, chips.detect())) - 12
    assert f"{more} more rows stand in report.html" in text


def test_more_than_two_sides_make_a_ladder_above_the_last_side_s_rows(result, ladder):
    text = printed(ladder)
    lines = text.splitlines()
    rungs = [next(i for i, line in enumerate(lines) if line.startswith(side)) for side in ladder.sides]
    assert rungs == list(range(rungs[0], rungs[0] + len(ladder.sides)))
    assert rungs[-1] < next(i for i, line in enumerate(lines) if line.startswith("optimised against stock"))
    assert "Every side" in text and "Every side" not in printed(result)


def test_notes_take_six_lines_at_most(result):
    notes = tuple(f"note {i}: " + "word " * 20 for i in range(9))  # Two lines each.
    text = printed(dataclasses.replace(result, notes=notes))
    assert text.count("•") == 3 and "• 7 more notes stand in report.html" in text
    assert "more notes" not in printed(dataclasses.replace(result, notes=("short",) * 6))


def test_disturbed_runs_and_the_duration_are_told(result):
    text = " ".join(printed(result).split())
    assert "4 of 16 runs disturbed: another process used 31 % of the cores" in text
    assert "16 of 16 runs valid, in 4 min 2 s" in text and "INVALID" not in text


def test_estimates_are_marked(result):
    text = printed(result)
    assert re.search(r"energy / token .* mJ est\.", text) and re.search(r"cost / 1M tokens .* USD est\.", text)


def test_what_was_not_shown_to_differ_is_not_bold(result):
    def change(c):
        found = Interval(0.9, 1.3) if (c.scenario, c.measure) == ("Offline", "output_tokens_per_s") else c.interval
        return dataclasses.replace(c, interval=found)

    bold = re.compile(r"Offline output.*\x1b\[1m *[\d.]+×")
    assert bold.search(printed(result, colour=True))
    changed = dataclasses.replace(result, comparisons=tuple(map(change, result.comparisons)))
    assert not bold.search(printed(changed, colour=True))


def test_an_invalid_result_says_so_in_red_with_every_reason(invalid):
    plain = printed(invalid, 100)
    assert "INVALID" in plain and "3 of 4 runs valid" in plain
    words = " ".join(plain.replace("│", " ").split())  # The reason is broken over lines.
    assert "3 of 80 requests failed; the first: r7 (12 in, 0 of 20 out, <out of pages>)" in words
    assert re.search(r"\x1b\[1;31m[^\x1b]*INVALID", printed(invalid, 100, colour=True))


def test_a_server_elsewhere_is_shown_with_what_is_known(remote):
    assert re.search(r"peak memory +600\.0 +– +MiB", printed(remote))
