import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

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


@pytest.mark.parametrize("name", ["ratios", "latency", "timeline", "cache"])
def test_no_text_lies_on_another_or_outside(figures, name):
    figure = figures[name]
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
    runs = [r for r in result.runs if r.scenario == "SingleStream" and r.side == "stock"]
    ttft = np.sort([1e3 * (t.first_token_s - t.arrival_s) for r in runs for t in r.timelines])
    x, y = ax.get_lines()[0].get_data()
    assert y[-1] == 1.0 and x[-1] == pytest.approx(ttft[-1])
    for value, fraction in zip(x, y, strict=True):
        assert fraction == pytest.approx((ttft <= value + 1e-9).mean())


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
