"""The parser alone: bytes in, events out, however the bytes are cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexjax.bench.sse import STRAY_CHARACTERS, EventParser


def parse(*pieces: bytes) -> list[tuple[str, str]]:
    parser = EventParser()
    events = [e for piece in pieces for e in parser.feed(piece, 0.0)]
    return [(e.kind, e.data) for e in (*events, *parser.close(0.0))]


def messages(*data: str) -> list[tuple[str, str]]:
    return [("message", text) for text in data]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_each_of_the_three_line_ends_ends_a_line(end):
    assert parse(f"data: a{end}{end}data: b{end}{end}".encode()) == messages("a", "b")


@pytest.mark.parametrize("letter", "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\ufeff\0")
def test_what_else_python_takes_for_a_line_end_is_text(letter):
    assert parse(f"data: a{letter}b\n\n".encode()) == messages(f"a{letter}b")


@pytest.mark.parametrize(
    "text",
    ["السلام عليكم", "模型很快", "👩‍👩‍👧‍👦", "e\u0301a\u0308", "ﷺ", "नमस्ते"],
    ids=["Arabic", "Chinese", "joined emoji", "combining marks", "ligature", "Devanagari"],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_cut_between_two_reads_gives_the_same_events(text, end):
    stream = f"\ufeff: ping{end}{end}event: x{end}data:{text}{end}data: 2{end}{end}data: {text}{end}{end}".encode()
    whole = parse(stream)
    assert whole == [("x", f"{text}\n2"), *messages(text)]
    for cut in range(1, len(stream)):
        assert parse(stream[:cut], stream[cut:]) == whole, cut
    assert parse(*(bytes([b]) for b in stream)) == whole


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)), st.data())
@settings(max_examples=50, deadline=None)
def test_any_text_comes_back_whole_however_it_is_cut(texts, data):
    stream = "".join(f"data: {text}\r\n\r\n" for text in texts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse(*pieces) == messages(*texts)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data:a\n\n", messages("a")),
        (b"data:  a\n\n", messages(" a")),  # One blank belongs to the field.
        (b"data: a\ndata\ndata: b\n\n", messages("a\n\nb")),
        (b"data: a", messages("a")),  # The last event's blank line never came.
        (b"data: a\n", messages("a")),
        (b"data: a\r", messages("a")),
        (b"data:\n\ndata\n\n\n\n", []),
        (b": ping\n\n:\n\ndata: a\n: within\n\n", messages("a")),
        (b"event: error\ndata: a\n\ndata: b\n\n", [("error", "a"), *messages("b")]),
        (b"event: ping\n\ndata: b\n\n", messages("b")),  # An event without data is none, its kind is forgotten.
        (b"id: 7\nretry: 10\ndata: a\n\n", messages("a")),
        (b'error: {"code": 500}\n\n', [("error", '{"code": 500}')]),
        (b"\xef\xbb\xbfdata: a\n\n", messages("a")),
        (b"data: \xff\xe2\x82\n\n", messages("\ufffd\ufffd")),
        (b"data: \xe2\x82", messages("\ufffd")),
    ],
)
def test_fields(stream, events):
    assert parse(stream) == events


def test_an_event_has_the_time_of_its_last_data_line():
    parser = EventParser()
    assert parser.feed(b"data: a\nda", 1.0) == []
    assert parser.feed(b"ta: b\n", 2.0) == []
    (event,) = parser.feed(b"\ndata: c", 3.0)
    assert (event.data, event.time) == ("a\nb", 2.0)
    (last,) = parser.close(4.0)
    assert (last.data, last.time) == ("c", 4.0)


def test_lines_that_are_no_fields_are_kept_up_to_a_limit():
    parser = EventParser()
    assert [*parser.feed(b'{\n  "error": "full"\n}', 0.0), *parser.close(0.0)] == []
    assert parser.stray == '{\n  "error": "full"\n}'
    parser = EventParser()
    for _ in range(100):
        parser.feed(b"<p>" + b"x" * 997 + b"\n", 0.0)
    assert STRAY_CHARACTERS - 100 < len(parser.stray) <= STRAY_CHARACTERS
