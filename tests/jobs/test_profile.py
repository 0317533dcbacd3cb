"""What can be profiled, and what is kept of it."""

import csv
import statistics
from pathlib import Path

import pytest

from flexjax.engine import EngineConfig
from flexjax.hardware.mesh import MeshConfig
from flexjax.jobs import profile
from flexjax.records import store
from flexjax.refusal import Refusal

GOLDEN = Path(__file__).resolve().parents[1] / "models" / "transformer" / "golden" / "llama3"


def test_the_rounds_and_their_medians_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(profile.compile_cache, "enable", lambda: None)
    engine = EngineConfig(dtype="float32", max_num_seqs=2, max_num_batched_tokens=16, page_size=8, max_model_len=64)
    config = profile.Config(str(GOLDEN), engine, prompt_tokens=8, output_tokens=32, rounds=2)
    assert profile.run(config, tmp_path) == 0
    with (tmp_path / "profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    (record,) = store.read(tmp_path / "results.parquet")
    assert len(rows) == 2 and record.columns["model.name"] == "llama3"
    for column, name in (("device_step_ms", "device_ms"), ("engine_step_ms", "engine_ms")):
        median = statistics.median(float(row[name]) for row in rows)
        assert record.columns[f"metrics.{column}"] == pytest.approx(median) and median > 0
    assert "engine, ms" in capsys.readouterr().out


@pytest.mark.parametrize("data", [2, -1])
def test_one_replica_is_profiled(data):
    with pytest.raises(Refusal, match=f"data=1; got data={data}"):
        profile.Config(engine=EngineConfig(mesh=MeshConfig(data=data)))
    assert profile.Config(engine=EngineConfig(mesh=MeshConfig(tensor=2))).rounds == 7
