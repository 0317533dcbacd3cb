import io
import re

import pytest
from rich.console import Console

from flexjax.bench.report import print_table


def printed(result, width=80, colour=False):
    out = io.StringIO()
    print_table(
        result, Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None)
    )
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_it_fits_and_cuts_nothing_off(result, width):
    text = printed(result, width)
    assert "…" not in text
    assert all(len(line.rstrip()) <= width for line in text.splitlines())


def test_each_measure_shows_both_sides_ratio_and_spread(result):
    server = next(c for c in result.comparisons if (c.scenario, c.measure) == ("Server", "tpot_p99_ms"))
    text = printed(result)
    block = text[re.search(r"^ Server\s*$", text, re.MULTILINE).end() :]
    line = next(line for line in block.splitlines() if "TPOT p99" in line)
    assert f"{server.a:.3f}" in line and f"{server.b:.3f}" in line
    assert f"{server.ratio:.2f}×" in line and f"{server.ratio_min:.2f}–{server.ratio_max:.2f}" in line


def test_estimates_are_marked(result):
    text = printed(result)
    assert re.search(r"energy / token .* mJ est\.", text) and re.search(r"cost / 1M tokens .* USD est\.", text)
    assert "16 of 16 runs valid" in text and "INVALID" not in text


def test_an_invalid_result_says_so_in_red_with_every_reason(invalid):
    plain = printed(invalid, 100)
    assert "INVALID" in plain and "3 of 4 runs valid" in plain
    words = " ".join(plain.replace("│", " ").split())  # The reason is broken over lines.
    assert "3 of 80 requests failed; the first: r7 (12 in, 0 of 20 out, <out of pages>)" in words
    assert re.search(r"\x1b\[1;31m[^\x1b]*INVALID", printed(invalid, 100, colour=True))


def test_a_server_elsewhere_is_shown_with_what_is_known(remote):
    assert re.search(r"peak memory +600\.0 +– +MiB", printed(remote))
