import gzip

import pytest

from flexjax.bench.trace import TraceRow, read_trace, scale
from flexjax.refusal import Refusal

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109\r\n"
    "2023-11-16 18:16:00.0000001,879,55"
)
MOONCAKE = (
    '{"timestamp": 3000, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n'
    '{"timestamp": 0, "input_length": 7322, "output_length": 490, "hash_ids": [2]}\n'
    "\n"
)


def test_azure_times_keep_seven_decimals(tmp_path):
    (tmp_path / "code.csv").write_bytes(AZURE.encode())
    rows = read_trace(tmp_path / "code.csv")
    assert [(r.input_tokens, r.output_tokens) for r in rows] == [(374, 44), (396, 109), (879, 55)]
    assert [r.time_s for r in rows] == [0.0, 4.3145790, 13.3194101]


HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize(
    "text",
    [
        "2024-05-10 00:00:00.009930+00:00,3,4\n2024-05-10 00:00:01.509931+00:00,5,6\n",  # Azure's of 2024.
        "2024-05-10 00:00:00.0099300,3,4\n2024-05-10 00:00:01.5099310,5,6\n",  # Azure's of 2023.
        "2024-05-10T00:00:00.009930Z,3,4\n2024-05-10T00:00:01.509931Z,5,6\n",
        "2024-05-10T00:00:00.00993,3,4\n2024-05-10 02:00:01.509931+0200,5,6\n",
        "2024-05-10t00:00:00.009930z,3,4\n2024-05-10 00:00:01.509931 UTC,5,6\n",
        "2024-05-10 00:00:00.009930+00,3,4\n2024-05-09 17:00:01.509931-07,5,6\n",
        "2024-05-10 00:00:00.009930+00:00,3,4\n2024-05-09 18:30:01.509931-05:30,5,6\n",
        "2024-05-10 00:00:00.00993+00:00,3,4\r\n\r\n,,\r\n  \r\n2024-05-10 00:00:01.509931000 Z, 5 ,6\r\n\r\n",
        "2024-05-10 00:00:01.509931Z,5,6\n2024-05-10 00:00:00.00993Z,3,4",  # Not in order.
        '"2024-05-10 00:00:00.00993","3","4"\n"2024-05-10 00:00:01.509931","5","6"\n',
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_azure_times_of_any_form(tmp_path, text, mark):
    (tmp_path / "t.CSV").write_bytes((mark + HEAD + text).encode())
    assert read_trace(tmp_path / "t.CSV") == [TraceRow(0.0, 3, 4), TraceRow(1.500001, 5, 6)]


def test_neighbours_100_ns_apart_stay_so(tmp_path):
    times = [f"2024-05-10 00:00:00.000000{n}+00:00,1,1\n" for n in range(10)]
    (tmp_path / "t.csv").write_text(HEAD + "".join(times))
    assert [row.time_s for row in read_trace(tmp_path / "t.csv")] == pytest.approx(
        [n * 1e-7 for n in range(10)], abs=1e-12
    )


def test_mooncake_is_sorted_by_time(tmp_path):
    (tmp_path / "m.jsonl").write_text(MOONCAKE)
    assert read_trace(tmp_path / "m.jsonl") == [TraceRow(0.0, 7322, 490), TraceRow(3.0, 6758, 500)]


@pytest.mark.parametrize(("name", "text"), [("t.csv", AZURE), ("t.jsonl", MOONCAKE)])
def test_gzipped_equals_plain_and_limit_takes_the_first(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    assert read_trace(tmp_path / f"{name}.gz") == read_trace(tmp_path / name)
    assert len(read_trace(tmp_path / name, limit=1)) == 1


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.csv", "time,in,out\n1,2,3\n", "a.csv:1: the header must be TIMESTAMP"),
        ("a.csv", AZURE + "\n2023-11-16 18:16:01.0,x,1\n", "a.csv:5: .*x"),
        ("a.csv", AZURE + "\n2023-11-16 18:16:01.0,1\n", "a.csv:5: "),
        ("a.csv", AZURE + "\nyesterday,1,1\n", "a.csv:5: .*yesterday"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
        ("a.jsonl", MOONCAKE + '{"timestamp": 1}\n', "a.jsonl:4: .*input_length"),
        ("a.jsonl", "[1, 2]\n", "a.jsonl:1: "),
        ("a.jsonl", '{"timestamp": 1, "input_length": -4, "output_length": 1}', "a.jsonl:1: .*not negative"),
        ("a.csv", HEAD + "2024-05-10 00:00:00+00:00,1,1\n\n2024-13-10 00:00:00Z,1,1\n", "a.csv:4: .*month"),
        ("a.csv", HEAD + "2024-05-10,1,1\n", "a.csv:2: .*'2024-05-10' is no time"),
        ("a.csv", HEAD + "2024-05-10 00:00:00Z,-1,1\n", "a.csv:2: .*not negative"),
        ("a.csv", HEAD + "2024-05-10 00:00:00Z,1.5,1\n", "a.csv:2: .*1.5"),
        ("a.csv", HEAD + '"2024-05-10 00:00:00Z,1,1\n' + "x" * 200_000, "a.csv:3: .*field larger"),
        ("a.csv", "TIMESTAMP;ContextTokens;GeneratedTokens\n", "a.csv:1: the header must be"),
        ("a.csv", "", "a.csv:1: the header must be"),
        ("a.jsonl", '{"timestamp": NaN, "input_length": 4, "output_length": 1}', "a.jsonl:1: .*not finite"),
        ("a.jsonl", '{"timestamp": 1, "input_length": 4.5, "output_length": 1}', "a.jsonl:1: .*whole number"),
        ("a.jsonl", '{"timestamp": 1, "input_length": 1e999, "output_length": 1}', "a.jsonl:1: "),
        ("a.jsonl", '{"timestamp": null, "input_length": 1, "output_length": 1}', "a.jsonl:1: "),
        ("a.txt", "", r"\.csv \(Azure 2023 or 2024\) or \.jsonl"),
    ],
)
def test_errors_name_file_and_line(tmp_path, name, text, where):
    (tmp_path / name).write_text(text)
    with pytest.raises(Refusal, match=where):
        read_trace(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", (HEAD + "2024-05-10 00:00:00Z,1,1\n").encode("utf-16")),
        ("a.csv", gzip.compress(AZURE.encode(), mtime=0)),
        ("a.csv.gz", AZURE.encode()),
        ("a.csv.gz", gzip.compress(AZURE.encode(), mtime=0)[:-20]),
        ("a.jsonl.gz", gzip.compress(MOONCAKE.encode(), mtime=0)[:10] + b"torn"),
        ("a.jsonl", MOONCAKE.encode() + b"\xff\n"),
        ("a.csv", None),
    ],
    ids=("UTF-16", "gzip named csv", "csv named gz", "gzip cut", "gzip torn", "broken UTF-8", "folder"),
)
def test_a_file_that_is_torn_or_something_else_is_named(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Refusal, match=f"{name} cannot be read"):
        read_trace(tmp_path / name)


def test_scale_compresses_time_and_clips_lengths():
    rows = [TraceRow(0.0, 1000, 0), TraceRow(10.0, 100, 50)]
    scaled = scale(rows, rate=5.0, length=0.1, max_input=64, max_output=4)
    assert scaled == [TraceRow(0.0, 64, 1), TraceRow(2.0, 10, 4)]
    with pytest.raises(ValueError, match="rate=0"):
        scale(rows, rate=0.0, max_input=1, max_output=1)


@pytest.mark.parametrize(
    ("name", "count", "mean_input", "mean_output"),
    [
        # Means as the publishers state them: Mooncake's README; Azure's, counted from the file.
        ("mooncake/conversation_trace.jsonl.gz", 12_031, 12_035, 343),
        ("azure-llm-2023/AzureLLMInferenceTrace_conv.csv.gz", 19_366, None, None),
        ("azure-llm-2023/AzureLLMInferenceTrace_code.csv.gz", 8_819, None, None),
    ],
)
def test_published_traces(shared_data, name, count, mean_input, mean_output):
    rows = read_trace(shared_data / name)
    assert len(rows) == count
    assert 3_400 < rows[-1].time_s < 3_700  # About one hour.
    assert all(r.input_tokens > 0 for r in rows)
    if mean_input:
        assert sum(r.input_tokens for r in rows) / count == pytest.approx(mean_input, abs=0.5)
        assert sum(r.output_tokens for r in rows) / count == pytest.approx(mean_output, abs=0.5)


def test_a_url_is_to_be_copied_first():
    with pytest.raises(Refusal, match="gs://bucket/t.csv.*local folder"):
        read_trace("gs://bucket/t.csv")
