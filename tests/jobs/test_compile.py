import json

import pytest

from flexjax.engine.config import EngineConfig
from flexjax.hardware import chips, topology
from flexjax.jobs import compile as job
from flexjax.records import store

needs_libtpu = pytest.mark.skipif(
    topology.missing(chips.find("v5e")) is not None, reason=str(topology.missing(chips.find("v5e")))
)
needs_cuda = pytest.mark.skipif(
    topology.missing(chips.find("h100")) is not None, reason=str(topology.missing(chips.find("h100")))
)


def config(**fields) -> job.Config:
    engine = EngineConfig(max_num_seqs=8, max_model_len=256, max_num_batched_tokens=32, page_size=128)
    return job.Config(**{"model": "qwen3-0.6b", "topology": "1x1", "engine": engine, "search": False, **fields})


@pytest.mark.tpu
@needs_libtpu
def test_every_step_is_compiled_and_kept(tmp_path, capsys):
    assert job.run(config(steps="all"), tmp_path) == 0
    printed = capsys.readouterr().out
    assert "decode 8" in printed and "mixed 32" in printed
    rows = json.loads((tmp_path / "record.json").read_text())
    assert [row["submission.scenario"] for row in rows] == ["decode", "mixed"]
    decode, mixed = rows
    assert {row["metrics.kind"] for row in rows} == {"compiled"}
    assert (decode["system.chip"], decode["model.name"]) == ("v5e", "qwen3-0.6b")
    assert decode["metrics.weights_bytes"] == pytest.approx(2 * 0.596e9, rel=0.01)
    assert decode["metrics.hbm_bytes"] <= 1.1 * (decode["metrics.weights_bytes"] + decode["metrics.live_cache_bytes"])
    assert mixed["metrics.flops"] > decode["metrics.flops"]
    assert len(store.read(tmp_path / "results.parquet")) == 2
    assert (tmp_path / "fits.png").stat().st_size > 10_000


@pytest.mark.tpu
@needs_libtpu
def test_what_is_too_large_is_answered(tmp_path, capsys):
    assert job.run(config(model="llama3-70b"), tmp_path) == 1
    printed = capsys.readouterr().out
    assert "llama3-70b does not fit: 8 × 256 tokens on 1 × Google TPU v5e" in " ".join(printed.split())
    assert [way for way in ("more chips:", "fewer bits:", "less context:") if way in printed] != []
    assert sum(line.startswith("  • ") for line in printed.splitlines()) == 3
    (row,) = json.loads((tmp_path / "record.json").read_text())
    assert (row["benchmark.valid"], row["metrics.fits"]) == (False, False)
    assert row["metrics.missing_bytes"] > 100 * 2**30


@pytest.mark.tpu
@needs_libtpu
def test_the_search_goes_down_to_what_the_compiler_takes(tmp_path, monkeypatch):
    sizes = []
    real = job.compile_steps

    def compile_steps(program, target, context, shapes):
        """As if the compiler needed room that no budget tells of."""
        sizes.append(shapes[0].num_seqs)
        if len(sizes) == 1:
            refused = job.aot.TooLarge(2 * target.limits.hbm_bytes, target.limits.hbm_bytes, 0.0)
            return [job.StepReport(shapes[0], context, refused, 0, 10 * target.limits.hbm_bytes, 0, target)]
        return real(program, target, context, shapes)

    monkeypatch.setattr(job, "compile_steps", compile_steps)
    target = job.Target.of("v5e", "1x1", None, "bfloat16")
    model = job.abstract_model(*job.families.family_of("qwen3-0.6b"), EngineConfig(), "tpu")
    found = job._confirmed(model, config(), target, 40, lambda batch: (batch, 256))
    assert sizes == [40, 36]
    assert found.fits and found.shape.num_seqs == 36


@needs_cuda
@pytest.mark.parametrize("chip", ["a100", "h100", "b200"])
def test_a_gpu_that_is_not_here(chip, tmp_path):
    hf = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32_000,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    }
    (tmp_path / "config.json").write_text(json.dumps(hf))
    engine = EngineConfig(max_num_seqs=1, max_model_len=2048, max_num_batched_tokens=32)
    assert job.run(config(model=str(tmp_path), chip=chip, topology="1", engine=engine, steps="decode"), tmp_path) == 0
    (row,) = json.loads((tmp_path / "record.json").read_text())
    assert row["system.accelerator.name"] == chips.find(chip).full_name
    assert row["software.xla_flags"].endswith("--xla_gpu_autotune_level=0")
    # Weights but for one table, and the cache in eight blocks of pages: the loop over them counts its turns.
    read = row["metrics.weights_bytes"] - 2 * 32_000 * 256 + row["metrics.live_cache_bytes"]
    assert row["metrics.hbm_bytes"] >= 0.95 * read


@pytest.mark.tpu
@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("chip", "topology"), [("v4", "2x2x1"), ("v5p", "2x2x1"), ("v6e", "2x2"), ("7x", "2x2x1")])
def test_every_kind_of_tpu(chip, topology, tmp_path):
    hf = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 1024,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 512,
    }
    (tmp_path / "config.json").write_text(json.dumps(hf))
    assert job.run(config(model=str(tmp_path), chip=chip, topology=topology, steps="largest"), tmp_path) == 0
    (row,) = json.loads((tmp_path / "record.json").read_text())
    assert (row["submission.scenario"], row["metrics.fits"]) == ("decode", True)
    assert json.loads(row["software.kernels"])["ragged_paged_attention"] == ["pallas_tpu"]


def test_nothing_to_compile_is_refused():
    with pytest.raises(ValueError, match="nothing to compile but a train step"):
        config(steps="none")


def test_a_model_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="llama-9b.*is neither"):
        job.run(config(model="llama-9b", chip="v5e"), tmp_path)
