"""The train job: a directory that any tool can load, a resumable workdir, refusals that help."""

import dataclasses
import errno
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from devices import REPOSITORY, environment

from flexjax import safetensors_io
from flexjax.config import from_config_dict
from flexjax.data import corpus
from flexjax.data.corpus import Document
from flexjax.hardware import distributed
from flexjax.jobs import train
from flexjax.launch import load, split
from flexjax.records import store
from flexjax.refusal import Refusal
from flexjax.train import digests
from flexjax.train.loop import read_log
from models import transformer


@pytest.fixture(autouse=True)
def small_corpus(monkeypatch):
    documents = [Document(p.name, p.read_text()) for p in sorted(Path(corpus.__file__).parent.glob("*.py"))]
    monkeypatch.setattr(corpus, "train_documents", lambda: documents)


@pytest.fixture
def config() -> train.Config:
    smoke = from_config_dict(train.Config, split(load("configs/train/smoke.py"))[1])
    return dataclasses.replace(
        smoke,
        vocab_size=300,
        loop=dataclasses.replace(smoke.loop, steps=8, checkpoint_every=4),
        optimizer=dataclasses.replace(smoke.optimizer, warmup_steps=1),
    )


def test_leaves_a_directory_that_loads(config, tmp_path, capsys):
    assert train.run(config, tmp_path) == 0
    assert {p.name for p in (tmp_path / "model").iterdir()} == {
        *("config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "generation_config.json"),
    }
    assert (tmp_path / "loss.png").is_file()
    assert [row["step"] for row in read_log(tmp_path / "loss.csv")] == [4, 5, 8]

    model = transformer.load(tmp_path / "model", dtype=jnp.float32)
    published = json.loads((tmp_path / "model" / "config.json").read_text())
    assert published["torch_dtype"] == "bfloat16" and published["eos_token_id"] == 0
    assert model.config.vocab_size == 300
    hidden, _ = model.dense(jnp.zeros((1, 4), jnp.int32))
    assert np.isfinite(model.logits(hidden)).all()
    assert "starting at step 0" in capsys.readouterr().out


def test_a_second_call_goes_on(config, tmp_path, capsys):
    half = dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=4))
    train.run(half, tmp_path)
    train.run(config, tmp_path)
    assert "starting at step 4" in capsys.readouterr().out
    last = read_log(tmp_path / "loss.csv")[-1]
    assert last["step"] == 8
    first, second = (record.columns for record in store.read(tmp_path / "results.parquet"))
    assert (first["metrics.steps"], second["metrics.steps"]) == (4, 8)
    assert second["metrics.loss_nats_per_token"] == last["loss"] and second["model.architecture"] == "LlamaForCausalLM"


def test_a_finished_run_exports_what_a_kill_prevented(config, tmp_path):
    train.run(config, tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    train.run(config, tmp_path)
    assert weights.read_bytes() == before


def test_a_shared_tokenizer_is_taken(config, tmp_path):
    train.run(config, tmp_path / "target")
    draft = dataclasses.replace(config, tokenizer=str(tmp_path / "target" / "model"), seed=1)
    train.run(draft, tmp_path / "draft")
    files = [tmp_path / side / "model" / "tokenizer.json" for side in ("target", "draft")]
    assert files[0].read_bytes() == files[1].read_bytes()
    first, second = (transformer.load(f.parent, dtype=jnp.float32) for f in files)
    assert (first.embedding.table[...] != second.embedding.table[...]).any()


def test_another_vocabulary_size_is_refused(config, tmp_path):
    train.run(dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=4)), tmp_path)
    with pytest.raises(ValueError, match="has 300 tokens and config.vocab_size is 301"):
        train.run(dataclasses.replace(config, vocab_size=301), tmp_path)


def test_a_workdir_that_is_a_url_is_refused_and_makes_no_folder(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match="must be a path of this machine; got gs:/bucket/run"):
        train.run(config, Path("gs://bucket/run"))
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_model_is_refused_before_anything_is_trained(config, tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(Refusal, match="The folder of the model .*model cannot be made"):
        train.run(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_full_disk_leaves_the_export_before_as_it_was(config, tmp_path, monkeypatch):
    train.run(dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=4)), tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def write(file, tensors):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors_io, "_write", write)
    with pytest.raises(OSError, match=r"No space left on device: .*model\.safetensors'"):
        train.run(config, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


def test_exactly_one_architecture(config, tmp_path):
    model = {**config.model, "architectures": ()}
    with pytest.raises(ValueError, match="exactly one architecture; got"):
        train.run(dataclasses.replace(config, model=model), tmp_path)


@pytest.mark.parametrize("name", ["smoke", "pydoc_7m", "pydoc_1m"])
def test_shipped_configs_are_understood(name):
    config = from_config_dict(train.Config, split(load(f"configs/train/{name}.py"))[1])
    model = transformer.config_from_hf({**config.model, "vocab_size": config.vocab_size})
    longest = config.data.shape(config.loop.steps)[1]
    assert longest <= model.max_position
    assert config.data.lengthen_at == () or config.data.lengthen_at[-1] < config.loop.steps


def run_on_eight_devices(processes: int, *workdirs: Path) -> list[str]:
    """What each process printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    script = Path(__file__).with_name("train_on_eight_devices.py")
    places = [
        {distributed.ADDRESS: address, distributed.COUNT: str(processes), distributed.INDEX: str(index)}
        for index in range(processes)
    ]
    started = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, workdirs)],
            cwd=REPOSITORY,
            env=environment(8 // processes) | (place if processes > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in places
    ]
    try:
        texts = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, texts, strict=True):
        assert process.returncode == 0, errors[-4000:]
    return [text for text, _ in texts]


def state(workdir: Path) -> dict[str, np.ndarray]:
    """The weights and moments of the last checkpoint, read by orbax alone."""
    folder, reader = workdir / "checkpoints" / "4" / "default", ocp.PyTreeCheckpointer()
    whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(folder).item_metadata.tree)
    restored = reader.restore(folder, restore_args=whole)
    return {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(restored)}


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path):
    """From the start, and from the states that one process left, of which the last is cut, so that both take the one
    before; four devices each, and files from process 0."""
    one, two, resumed = (tmp_path / name for name in ("one", "two", "resumed"))
    run_on_eight_devices(1, one)
    shutil.copytree(one, resumed)
    (resumed / "checkpoints" / "4" / "default" / "manifest.ocdbt").write_bytes(b"")
    two.mkdir()
    first, second = run_on_eight_devices(2, two, resumed)
    assert "starting at step 2" in first and "starting at step" not in second
    assert (resumed / "checkpoints" / "4.unreadable").is_dir()
    for workdir in (two, resumed):
        assert digests.fault(workdir / "checkpoints" / "4") == ""
        rows, wanted = read_log(workdir / "loss.csv"), read_log(one / "loss.csv")
        np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in wanted], rtol=1e-6)
        # Sums over processes in another order; a step is 3e-3 long.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), state(workdir), state(one))
        model = transformer.load(workdir / "model", dtype=jnp.float32)
        kept = state(one)["['params']['embedding']['table']"]
        np.testing.assert_allclose(model.embedding.table[...], kept, atol=1e-3, rtol=1e-2)
        assert (workdir / "loss.png").is_file()
