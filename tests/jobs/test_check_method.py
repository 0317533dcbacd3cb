import csv
import dataclasses
from pathlib import Path

import jax.numpy as jnp
import pytest

from flexjax.bench.workload import Lengths, WorkloadConfig
from flexjax.data.tokenizer import save_tokenizer, train_tokenizer
from flexjax.engine import EngineConfig
from flexjax.hardware import compile_cache
from flexjax.jobs import check_method
from flexjax.jobs.check_method import Config
from flexjax.records import store
from models.transformer import Layer, Rope, TransformerConfig, build, save


@pytest.fixture
def config(tmp_path, monkeypatch) -> Config:
    monkeypatch.setattr(compile_cache, "enable", lambda: None)  # The tests have a cache of their own.
    model = TransformerConfig(
        "LlamaForCausalLM", vocab_size=257, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=32,
        max_position=32, layers=(Layer(rope=Rope()),), eos_token_id=0,
    )  # fmt: skip
    save(build(model, dtype=jnp.float32), tmp_path / "model")
    save_tokenizer(train_tokenizer(["x"], vocab_size=257), tmp_path / "model", max_position=32)
    shape = dict(dtype="float32", max_num_seqs=2, max_num_batched_tokens=16, page_size=8, max_model_len=32)
    return Config(
        model=str(tmp_path / "model"),
        engine=EngineConfig(**shape, pipeline_depth=1),
        stock_batch_size=2,
        workload=WorkloadConfig(prompts=64, input=Lengths(8, 0.3, 4, 16), output=Lengths(4, 0.3, 2, 8)),
        comparisons=1,
        rounds=2,
        slowed_rounds=2,
        window_s=0.2,
        queries=16,
        of_offline=0.3,
        slowdown=2.0,
    )


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.slow
def test_a_large_slowdown_is_found_and_every_finding_is_told(config, tmp_path, capsys):
    status = check_method.run(config, tmp_path)
    rows = read(tmp_path / "findings.csv")
    by_name = {row["what"]: row for row in rows}
    assert len(rows) == 7 and by_name["sides swapped"]["holds"] == "True"
    assert by_name["Server with 32 queries in place of 16"]["expected"] == "intervals of TTFT p50 overlap"
    slowed = [row for row in read(tmp_path / "comparisons.csv") if row["sides"] == "slowed"]
    offline = [float(row["ratio"]) for row in slowed if row["measure"] == "output_tokens_per_s"]
    assert len(offline) == 1 and max(offline) < 0.7  # Each turn takes three times as long.
    (record,) = store.read(tmp_path / "results.parquet")
    assert record.columns["metrics.sides_swapped"] is True
    assert status == (1 if any(row["holds"] == "False" for row in rows) else 0)
    printed = capsys.readouterr().out
    assert "[2/4] twice the queries" in printed and "told, not judged" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(engine=EngineConfig()), "set engine.pipeline_depth=1; got 2"),
        (dict(rounds=1), "two rounds or more"),
        (dict(parts=()), "set parts to one or more of busy, doubled, equal, slowed"),
    ],
)
def test_what_could_show_nothing_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)
