import dataclasses
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from flexjax.bench.interval import Interval
from flexjax.bench.report import plots, table
from flexjax.hardware import chips


@pytest.fixture(scope="module")
def figures(result):
    return plots.figures(result, table.rows(result, chips.detect()))


def boxes(figure, texts):
    renderer = figure.canvas.get_renderer()
    return [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_visible() and t.get_text()]


def test_there_is_a_picture_of_everything(figures):
    assert set(figures) == {"ratios", "latency", "timeline", "cache"}


@pytest.fixture(scope="module")
def of_six(ladder):
    """With a variant, whose title is as long as they get."""
    runs = [dataclasses.replace(run, scenario="Offline, ends unknown") for run in ladder.runs if run.kind == "Offline"]
    result = dataclasses.replace(ladder, runs=(*ladder.runs, *runs))
    return plots.figures(result, table.rows(result, chips.detect()))


def test_several_sides_make_a_ladder(of_six, ladder):
    assert set(of_six) == {"ladder", "ratios", "latency", "timeline", "cache"}
    single, offline = of_six["ladder"].axes
    assert [t.get_text() for t in single.get_yticklabels()] == list(ladder.sides)
    runs = [[r for r in ladder.runs if (r.scenario, r.side) == ("Offline", side)] for side in ladder.sides]
    medians = [np.median([r.metrics.output_tokens_per_s for r in rounds]) for rounds in runs]
    assert [bar.get_width() for bar in offline.patches] == pytest.approx(medians)
    legend = [t.get_text() for t in of_six["latency"].legends[0].get_texts()]
    assert legend == list(ladder.sides)
    looks = plots._looks(ladder.sides)
    assert len({colour for colour, _ in looks.values()}) == len({style for _, style in looks.values()}) == 6


def test_three_scenarios_leave_no_empty_axes(result):
    kept = ("Offline", "Server", "SingleStream")
    three = dataclasses.replace(
        result,
        runs=tuple(run for run in result.runs if run.scenario in kept),
        comparisons=tuple(c for c in result.comparisons if c.scenario in kept),
    )
    assert len({run.scenario for run in three.runs}) == 3
    drawn = plots.figures(three, table.rows(three, chips.detect()))
    for name in ("ratios", "cache"):
        shown = [ax for ax in drawn[name].axes if ax.get_visible()]
        assert len(drawn[name].axes) == 4 and len(shown) == 3 and all(ax.get_title(loc="left") for ax in shown)


_NAMES = ("ratios", "latency", "timeline", "cache")


@pytest.mark.parametrize(
    ("sides", "name"), [*(("figures", name) for name in _NAMES), *(("of_six", name) for name in ("ladder", *_NAMES))]
)
def test_no_text_lies_on_another_or_outside(sides, name, request):
    figure = request.getfixturevalue(sides)[name]
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    texts = []
    for ax in figure.axes:
        if ax.get_visible():
            legend = ax.get_legend()
            texts += [ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
            texts += [t for t in (*ax.get_xticklabels(), *ax.get_yticklabels()) if _inside(ax, t)]
            texts += legend.get_texts() if legend else []
    found = boxes(figure, texts)
    width, height = figure.canvas.get_width_height()
    for text, box in found:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text
    for i, (one, a) in enumerate(found):
        for two, b in found[:i]:
            overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(overlap) < 1, f"{one!r} lies on {two!r}"


def _inside(ax, label):
    """Whether the tick is drawn: matplotlib keeps some beyond the limits, unseen."""
    x, y = label.get_position()
    (x0, x1), (y0, y1) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
    return (label in ax.get_xticklabels() and x0 <= x <= x1) or (label in ax.get_yticklabels() and y0 <= y <= y1)


def test_svg_is_one_element_that_fits_any_width_and_takes_the_colour_of_text(figures):
    text = plots.svg(figures["cache"])
    root = ET.fromstring(text)
    assert root.tag.endswith("svg") and "width" not in root.attrib and "height" not in root.attrib
    assert root.attrib["viewBox"]
    assert "currentColor" in text and plots._INK not in text
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)


def test_png_is_written_in_full(figures):
    data = plots.png(figures["cache"])
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.rstrip().endswith(b"IEND\xaeB`\x82")


def test_the_same_result_gives_the_same_svg(small):
    rows = table.rows(small, chips.detect())
    assert len({plots.svg(plots.figures(small, rows)["ratios"]) for _ in range(2)}) == 1


def test_the_distribution_is_that_of_the_requests(result, figures):
    ax = figures["latency"].axes[0]
    runs = [r for r in table.measured(result) if r.scenario == "SingleStream" and r.side == "stock"]
    ttft = np.sort([1e3 * (t.first_token_s - t.arrival_s) for r in runs for t in r.timelines])
    x, y = ax.get_lines()[0].get_data()
    assert y[-1] == 1.0 and x[-1] == pytest.approx(ttft[-1])
    for value, fraction in zip(x, y, strict=True):
        assert fraction == pytest.approx((ttft <= value + 1e-9).mean())


def test_a_percentile_that_is_not_compared_is_in_no_legend(small):
    without = [c for c in small.comparisons if c.measure != "ttft_p99_ms"]
    figure = plots.figures(dataclasses.replace(small, comparisons=tuple(without)), ())["latency"]
    ttft, tpot, _ = ([t.get_text() for t in ax.get_legend().get_texts()] for ax in figure.axes)
    assert all("p50" in text and "p99" not in text for text in ttft)
    assert all("p99" in text for text in tpot)


def test_a_probe_is_in_no_picture(small):
    """Its twenty requests would change the curves."""
    without = dataclasses.replace(small, runs=table.measured(small))
    rows = table.rows(small, chips.detect())
    one, two = (plots.figures(r, rows) for r in (small, without))
    assert {name: plots.svg(figure) for name, figure in one.items()} == {n: plots.svg(f) for n, f in two.items()}


def test_a_bar_of_many_decades_does_not_hide_the_dots(small):
    wide = [dataclasses.replace(c, interval=Interval(c.ratio / 1e9, c.ratio * 1e9)) for c in small.comparisons]
    changed = dataclasses.replace(small, comparisons=tuple(wide))
    ax = plots.figures(changed, table.rows(changed, chips.detect()))["ratios"].axes[0]
    low, high = ax.get_xlim()
    ratios = [c.ratio for c in wide]
    assert low > min(1, *ratios) / 20 and high < (10 * max(1, *ratios)) ** 1.25 * 3


def test_a_server_elsewhere_is_drawn_from_what_it_shows(remote):
    figures = plots.figures(remote, table.rows(remote, chips.detect()))
    assert set(figures) == {"ratios", "latency", "timeline", "cache"}
    names = {t.get_text() for ax in figures["timeline"].axes if (legend := ax.get_legend()) for t in legend.get_texts()}
    assert names == {"in the batch", "waiting", "in flight"}


def test_peaks_survive_thinning():
    values = np.zeros(10_000)
    values[777] = 5.0
    times, thinned = plots._peaks(list(range(10_000)), list(values))
    assert len(times) == len(thinned) <= plots._POINTS and thinned.max() == 5.0 and (np.diff(times) > 0).all()
