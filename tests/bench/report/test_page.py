import html.parser
import re
import time

import pytest

from flexjax.bench.report import table, write_report
from flexjax.records import environment


class Page(html.parser.HTMLParser):
    """Checks that elements close in order, and notes every address that the page would load."""

    VOID = ("meta", "br", "hr", "img", "input", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.text = [], [], ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value[0] != "#"]
        assert tag not in ("script", "link", "iframe")

    def handle_startendtag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value[0] != "#"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f" {data}"


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("bench") / "new"
    start = time.process_time()
    path = write_report(workdir, result)
    return workdir, path.read_text(), time.process_time() - start


def test_the_page_stands_alone(written):
    assert Page(written[1]).loads == []
    assert "url(" not in re.sub(r"url\(#[^)]*\)", "", written[1])


def test_everything_is_on_it(written, result):
    text = " ".join(Page(written[1]).text.split())
    for heading in ("Every measure", "Latency distributions", "Timeline of the batch", "Cache in use", "Verdicts"):
        assert heading in text
    for c in result.comparisons:
        assert f"{table.figure(c.baseline_value)} {table.figure(c.value)} {c.unit} {table.times(c.ratio)}" in text
    assert "✓ VALID 16 of 16 runs hold. 4 of 16 runs disturbed: another process used 31 % of the cores." in text
    assert "All of it took 4 min 2 s." in text and "INVALID" not in text
    assert "4.000 ✓ held , 8.800 ✗ missed , 8.000 ✓ held" in text  # The search, as it was tried.
    assert "Server, probe at 8.0/s – stock" in text  # A probe has a verdict and no round.
    assert "kernel matmul – a; b" in text
    assert result.notes[0] in text
    assert environment.collect()["system.cpu.model"] in text
    assert '"max_num_seqs": 16' in text
    assert "estimated" in text and "XLA flags:" in text


def test_it_is_read_from_the_verdict_down(ladder, tmp_path):
    written = write_report(tmp_path, ladder).read_text()
    assert re.findall("<h2>(.*?)</h2>", written) == [
        "Every side",
        "optimised against stock: the first rows",
        "The ladder",
        "How many times better",
        "Latency distributions",
        "Timeline of the batch",
        "Cache in use",
        "Every measure",
        "Largest rates",
        "Verdicts",
        "The sides",
        "Machine and software",
        "Configuration",
    ]
    text = Page(written).text
    assert text.index("✓ VALID") < text.index("Every side")
    whole = text[text.index("Every measure") : text.index("Largest rates")]
    for side in ladder.sides[1:-1]:
        assert f"{side} against stock" in whole
    first = text[text.index("the first rows") : text.index("Values are medians")]
    assert first.count("×") == 11  # Twelve rows; ROUGE-L has no ratio.


def test_the_pictures_lie_beside_it(written):
    assert {p.name for p in written[0].iterdir()} == {
        "report.html",
        "ratios.png",
        "latency.png",
        "timeline.png",
        "cache.png",
    }


def test_it_is_made_quickly(written):
    assert written[2] < 10  # Seconds of processor time; four scenarios, two rounds.


def test_an_invalid_result_leads_with_why_and_is_escaped(invalid, tmp_path):
    text = write_report(tmp_path, invalid, {"software.xla_flags": "--xla_a=<b>"}).read_text()
    assert "✗ INVALID" in text and "&lt;out of pages&gt;" in text and "<out of pages>" not in text
    assert "--xla_a=&lt;b&gt;" in text
    assert text.index("✗ INVALID") < text.index("Every measure")
    Page(text)


def test_a_server_elsewhere_can_be_reported(remote, tmp_path):
    text = Page(write_report(tmp_path, remote).read_text()).text
    assert "http://127.0.0.1:8000" in text
