"""The job from config to files, on a tiny model; limits are loose, for no test may hang on speed."""

import dataclasses
import json
import runpy
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from flexjax.bench import ab
from flexjax.bench.early_stopping import queries_needed
from flexjax.bench.http_target import HttpConfig, HttpTarget
from flexjax.bench.judge import QualityConfig
from flexjax.bench.plan import OfflineConfig, PoissonConfig, SingleStreamConfig
from flexjax.bench.result import StartUp
from flexjax.bench.search import SearchConfig
from flexjax.bench.sides import SideConfig, SideMaker
from flexjax.bench.target import TargetStats
from flexjax.bench.workload import Lengths, WorkloadConfig
from flexjax.config import from_config_dict
from flexjax.data.tokenizer import save_tokenizer, train_tokenizer
from flexjax.engine.config import EngineConfig
from flexjax.engine.request import TokenEvent
from flexjax.hardware import compile_cache
from flexjax.jobs import bench
from flexjax.jobs.bench import Config
from flexjax.records import query
from models.transformer import Layer, Rope, TransformerConfig, build, save

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LOOSE = PoissonConfig(64, 0.9, min_duration_s=0.0, of_slowest=0.5, ttft_limit_ms=600_000.0, tpot_limit_ms=60_000.0)
STREAM = SingleStreamConfig(queries=64, min_duration_s=0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("tiny")
    config = TransformerConfig(
        architecture="LlamaForCausalLM",
        vocab_size=257,
        d_model=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        d_ff=32,
        max_position=32,
        layers=(Layer(rope=Rope()),),
        eos_token_id=0,
    )
    save(build(config, dtype=jnp.float32), directory)
    save_tokenizer(train_tokenizer(["x"], vocab_size=257), directory, max_position=32)
    return str(directory)


@pytest.fixture
def config(model, monkeypatch) -> Config:
    monkeypatch.setattr(compile_cache, "enable", lambda: None)  # The tests have a cache of their own.
    return Config(
        model=model,
        sides={"stock": SideConfig("stock", batch_size=2), "optimised": SideConfig("engine")},
        scenarios=("SingleStream", "Offline", "Server", "Interactive"),
        engine=EngineConfig(dtype="float32", max_num_seqs=2, max_num_batched_tokens=16, page_size=8),
        workload=WorkloadConfig(prompts=64, input=Lengths(8, 0.3, 4, 16), output=Lengths(4, 0.3, 2, 8)),
        rounds=1,
        single_stream=STREAM,
        offline=OfflineConfig(queries=12, min_duration_s=0.0),
        server=LOOSE,
        interactive=LOOSE,
        calibration_queries=8,
        memory=False,
        quality=QualityConfig(text_bytes=300, context_tokens=16, continuation_tokens=8, prompts=64, alone=8),
    )


class Echo:
    """Answers every request at once, from a thread of its own."""

    def __init__(self, name: str):
        self.name, self.stopped = name, False
        self._threads = []

    def start(self):
        return StartUp(0.0, 0.0)

    def submit(self, request):
        self._threads.append(threading.Thread(target=self._answer, args=(request,)))
        self._threads[-1].start()

    def _answer(self, request):
        tell = lambda kind, **fields: request.listener(TokenEvent(kind, request.id, time.perf_counter(), **fields))
        tell("scheduled")
        for i in range(request.params.max_tokens):
            tell("token", token_ids=(i,))
        tell("done", finish_reason="length")

    def stop(self):
        for thread in self._threads:
            thread.join()
        self.stopped = True

    def describe(self):
        return {"software": "echo"}

    def stats(self):
        return TargetStats()


@pytest.fixture
def echoes(config, monkeypatch):
    """The config with two echoes for sides, and the echoes."""
    made = []
    make = lambda self, name, side: made.append(Echo(name)) or made[-1]
    monkeypatch.setattr(SideMaker, "target", make)
    monkeypatch.setattr(bench, "write_report", lambda workdir, result: None)  # Seconds of plotting.
    sides = {"a": SideConfig("stock"), "b": SideConfig("engine")}
    return dataclasses.replace(config, sides=sides, compare=("a", "b"), quality=QualityConfig(0, prompts=0)), made


def test_the_whole_job(config, tmp_path, capsys, monkeypatch):
    seen = []
    whole = ab.measure
    monkeypatch.setattr(ab, "measure", lambda *a, **k: seen.append(whole(*a, **k)) or seen[-1])
    assert bench.run(config, tmp_path) == 0
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "record.json").read_text())
    runs = [(row["technique.name"], row["submission.scenario"]) for row in rows if row["benchmark.round"] >= 0]
    assert runs == [(side, scenario) for scenario in config.scenarios for side in ("stock", "optimised")]
    for row in rows:
        assert row["benchmark.valid"] is True and row["metrics.ttft_p99_ms"] > 0
        assert row["metrics.failed"] == 0 and row["quality.rouge_l"] == 100  # Both are float32.
        assert json.loads(row["benchmark.config_json"])["rounds"] == 1
    stored = query(tmp_path / "results.parquet", 'SELECT "technique.name" FROM results')
    assert len(stored) == 8 + 4
    folders = {f"0-{side}-{s}" for side in config.compare for s in config.scenarios}
    folders |= {f"calibration-{index}-{side}" for index in (0, 1) for side in config.compare}
    assert {p.name for p in (tmp_path / "loadgen").iterdir()} == folders
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert "Server" in printed and "8 of 8 runs valid" in printed and "INVALID" not in printed

    for a, b in zip(seen[4::2], seen[5::2], strict=True):  # The first four are the calibration.
        assert (a.side, b.side, a.scenario) == ("stock", "optimised", b.scenario)
        assert [(t.n_in, t.n_out) for t in a.timelines] == [(t.n_in, t.n_out) for t in b.timelines]
        assert [x.item for x in a.answers] == [x.item for x in b.answers]
        if a.scenario in ("Server", "Interactive"):
            assert [t.arrival_s for t in a.timelines] == pytest.approx([t.arrival_s for t in b.timelines], abs=1e-9)


def test_a_limit_missed_is_a_result(echoes, tmp_path, capsys):
    config, _ = echoes
    tight = dataclasses.replace(LOOSE, rate_per_s=500.0, ttft_limit_ms=1e-3)  # No machine answers in a microsecond.
    assert bench.run(dataclasses.replace(config, scenarios=("Server",), server=tight), tmp_path) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("valid, over its limits") == 2
    assert "2 of 2 runs valid, 2 of them without their limits kept" in printed
    rows = json.loads((tmp_path / "record.json").read_text())
    rows = [row for row in rows if row["benchmark.round"] >= 0]
    assert [row["benchmark.valid"] for row in rows] == [True, True]
    assert {row["benchmark.loadgen_verdict"] for row in rows} == {"INVALID"}


def test_an_invalid_run_is_told_and_fails_the_job(echoes, tmp_path, capsys):
    config, _ = echoes
    few = SingleStreamConfig(queries=16, percentile=0.9, min_duration_s=0.0)  # LoadGen needs 64.
    assert bench.run(dataclasses.replace(config, scenarios=("SingleStream",), single_stream=few), tmp_path) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "INVALID" in printed and "b, SingleStream, round 1: LoadGen: too few queries for p90" in printed
    rows = json.loads((tmp_path / "record.json").read_text())
    assert [row["benchmark.valid"] for row in rows if row["benchmark.round"] >= 0] == [False, False]


def test_a_calibration_that_failed_ends_the_job(echoes, tmp_path, capsys, monkeypatch):
    config, _ = echoes
    monkeypatch.setattr(Echo, "_answer", lambda self, r: r.listener(TokenEvent("done", r.id, time.perf_counter())))
    assert bench.run(config, tmp_path) == 1
    assert "INVALID: a, calibration: 8 of 8 requests gave a wrong number of tokens" in capsys.readouterr().out
    rows = json.loads((tmp_path / "record.json").read_text())
    assert {(row["benchmark.round"], row["benchmark.valid"]) for row in rows} == {(-1, False)}


def test_a_side_that_cannot_answer_ends_the_job(echoes, tmp_path, capsys, monkeypatch):
    config, _ = echoes
    fail = lambda self, r: r.listener(TokenEvent("done", r.id, 0.0, finish_reason="error", error="out of memory"))
    monkeypatch.setattr(Echo, "_answer", fail)
    assert bench.run(dataclasses.replace(config, quality=QualityConfig(0, prompts=1)), tmp_path) == 1
    assert "INVALID: a could not answer: out of memory" in capsys.readouterr().out


def test_an_interrupt_loses_no_finished_run(echoes, tmp_path, monkeypatch):
    config, made = echoes
    whole = ab.measure

    def measure(side, scenario, items, **options):
        if options["round_index"] == 1:
            raise KeyboardInterrupt
        return whole(side, scenario, items, **options)

    monkeypatch.setattr(ab, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        bench.run(dataclasses.replace(config, scenarios=("Offline",), rounds=2), tmp_path)
    stored = query(tmp_path / "results.parquet", 'SELECT "technique.name" AS side FROM results ORDER BY side')
    assert [row["side"] for row in stored] == ["a", "a", "a", "b", "b", "b"]  # Two each of the calibration.
    assert [echo.stopped for echo in made] == [True, True]


def test_a_trace_is_replayed(echoes, tmp_path):
    config, _ = echoes
    rows = [{"timestamp": 20 * i, "input_length": 4 + i % 8, "output_length": 3} for i in range(20)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    workload = dataclasses.replace(config.workload, prompts=20, trace=str(tmp_path / "t.jsonl"))
    assert bench.run(dataclasses.replace(config, workload=workload, scenarios=("replay",)), tmp_path / "out") == 0
    rows = json.loads((tmp_path / "out" / "record.json").read_text())
    rows = [row for row in rows if row["benchmark.round"] >= 0]
    assert [row["submission.scenario"] for row in rows] == ["replay", "replay"]
    assert {row["benchmark.loadgen_verdict"] for row in rows} == {"not driven by LoadGen"}
    assert all(row["metrics.completed"] == 20 and row["metrics.goodput_fraction"] == 1 for row in rows)


def test_the_largest_rate_is_searched(echoes, tmp_path, capsys, monkeypatch):
    config, _ = echoes
    monkeypatch.setattr(bench.plan, "poisson", paced := _paced(bench.plan.poisson))
    config = dataclasses.replace(
        config,
        scenarios=("Offline",),
        largest_rate=("Server",),
        search=SearchConfig(probes=2, queries=64, min_duration_s=0),
    )
    seen = []
    monkeypatch.setattr(bench, "write_report", lambda workdir, result: seen.append(result))
    assert bench.run(config, tmp_path) == 0
    (result,) = seen
    assert [(s.side, s.scenario) for s in result.searches] == [("a", "Server"), ("b", "Server")]
    for search in result.searches:  # Limits that nobody misses: the next rate is a quarter higher.
        (first, held), (second, held_too) = search.probes
        assert held and held_too and second == pytest.approx(1.25 * first) == search.held_per_s
    rows = json.loads((tmp_path / "record.json").read_text())
    assert sum(row["submission.scenario"] == "Server, search" for row in rows) == 4
    assert paced.calls == 4


def _paced(whole):
    """Echoes answer faster than LoadGen can ask: their rate is taken as 200 requests/s."""

    def poisson(config, name, rate_per_s, label=""):
        poisson.calls += 1
        return dataclasses.replace(whole(config, name, rate_per_s, label), rate_per_s=200.0)

    poisson.calls = 0
    return poisson


def test_unknown_ends_are_the_same_work(config, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(bench, "write_report", lambda workdir, result: seen.append(result))
    assert bench.run(dataclasses.replace(config, scenarios=("Offline",), unknown_ends=True), tmp_path) == 0
    runs = [run for run in seen[0].runs if run.scenario == "Offline, ends unknown"]
    assert [run.side for run in runs] == ["stock", "optimised"]
    for run in runs:
        assert run.verdict.valid and run.answers == ()  # They are forced: nobody's own.
        assert len({t.n_out for t in run.timelines}) > 2
    assert [(t.n_in, t.n_out) for t in runs[0].timelines] == [(t.n_in, t.n_out) for t in runs[1].timelines]


def test_a_side_can_be_a_server_or_have_an_engine_of_its_own(config, monkeypatch):
    maker = SideMaker(config.model, config.engine, config.workload)
    http = SideConfig("http", http=HttpConfig("http://127.0.0.1:9"), api_key_variable="PEER_KEY")
    with pytest.raises(ValueError, match="PEER_KEY, which holds the server's key, is unset"):
        maker.target("peer", http)
    monkeypatch.setenv("PEER_KEY", "x")
    target = maker.target("peer", http)
    assert isinstance(target, HttpTarget) and target.name == "peer"
    wide = dataclasses.replace(config.engine, max_num_seqs=4)
    assert maker.target("wide", SideConfig("engine", engine=wide)).config is wide
    assert maker.target("plain", SideConfig("engine")).config is config.engine


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: dataclasses.replace(c, compare=("stock", "stock")), "two sides or more, each once"),
        (lambda c: dataclasses.replace(c, compare=("stock", "other")), "compare names other, and sides has stock, opt"),
        (lambda c: dataclasses.replace(c, largest_rate=("Offline",)), "that of Server or Interactive"),
        (lambda c: dataclasses.replace(c, overload=0.5), "more than 1 time"),
        (lambda c: dataclasses.replace(c, unknown_ends=True, quality=QualityConfig(0, prompts=0)), "forced tokens"),
        (lambda c: SideConfig("http", http=HttpConfig("http://x"), bodies={"rotary": "xla"}), "not of a server"),
        (lambda c: dataclasses.replace(c, scenarios=("replay",)), "set workload.trace"),
        (lambda c: dataclasses.replace(c, rounds=0), "at least one round"),
        (lambda c: SideConfig("http"), "needs http.url"),
        (lambda c: SideConfig("stock", http=HttpConfig("http://x")), "only then"),
    ],
)
def test_what_makes_no_sense_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        change(config)


def test_a_model_that_is_not_there_and_a_context_too_short(config, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere does not exist. Models that ship: .*pydoc-7m"):
        bench.run(dataclasses.replace(config, model=str(tmp_path / "nowhere")), tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer\.json does not exist. Set model to a directory"):
        bench.run(dataclasses.replace(config, model=str(tmp_path)), tmp_path)
    long = dataclasses.replace(config.workload, output=Lengths(4, 0.3, 2, 17))
    with pytest.raises(ValueError, match="16 \\+ 17 = 33 tokens, the model has 32"):
        bench.run(dataclasses.replace(config, workload=long), tmp_path)


@pytest.mark.parametrize("name", ["bench", "bench_ci", "bench_full", "quantize", "quantize_cache"])
def test_shipped_configs_are_sound(name):
    values = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]().to_dict()
    assert values.pop("job") == "bench"
    config = from_config_dict(Config, values)
    longest = config.workload.input.high + config.workload.output.high
    for side in config.chosen.values():
        assert longest <= ((side.engine or config.engine).max_model_len or longest)
    for poisson in (config.server, config.interactive):
        assert poisson.queries >= queries_needed(poisson.percentile)
    assert config.workload.prompts >= config.single_stream.queries >= 64
