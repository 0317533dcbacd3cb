from pathlib import Path

import pytest

from flexjax import config_file, families, shipped
from flexjax.data.tokenizer_files import open_tokenizer
from flexjax.engine.processes.replicas import load_engine
from flexjax.hardware import xla_flags
from flexjax.refusal import Refusal
from flexjax.safetensors_io import open_checkpoint

MODEL = "models/weights/pydoc-7m"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_ships_is_found_from_any_folder(elsewhere):
    assert shipped.model(MODEL) == shipped.home() / MODEL
    assert shipped.model(f"{MODEL}/tokenizer.json").is_file()
    assert families.family_of(MODEL)[1]["architectures"] == ["LlamaForCausalLM"]
    assert config_file.load("configs/bench_ci.py").model == MODEL
    assert xla_flags.load("cpu/default").name == "cpu/default"


def test_the_current_folder_comes_first(elsewhere):
    (elsewhere / MODEL).mkdir(parents=True)
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "bench_ci.py").write_text("get_config = lambda: dict(job='mine')")
    (elsewhere / "xla_flags" / "cpu").mkdir(parents=True)
    (elsewhere / "xla_flags" / "cpu" / "default.txt").write_text("# why\n--xla_one=true\n")
    assert shipped.model(MODEL).resolve() == elsewhere / MODEL
    assert config_file.load("configs/bench_ci.py").job == "mine"
    assert str(xla_flags.load("cpu/default")) == "--xla_one=true"


def test_what_is_nowhere_is_refused_with_both_places_and_what_ships(elsewhere):
    for ask in (shipped.model, families.family_of, config_file.load):
        with pytest.raises(Refusal) as refused:
            ask("models/none")
        said = str(refused.value)
        assert f"neither {elsewhere / 'models/none'} nor {shipped.home() / 'models/none'} exists" in said
        assert ("configs/bench_ci.py" if ask is config_file.load else "models/weights/pydoc-1m") in said
    with pytest.raises(Refusal, match="There is no model at /none: /none does not exist"):
        shipped.model("/none")


def test_a_wheel_has_it_beside_the_modules(tmp_path, monkeypatch):
    (tmp_path / "share" / "models" / "weights" / "a").mkdir(parents=True)
    (tmp_path / "share" / "models" / "weights" / "a" / "config.json").write_text("{}")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path)
    assert shipped.home() == tmp_path / "share"
    assert shipped.models() == ["models/weights/a"]
    assert shipped.model("models/weights/a") == tmp_path / "share" / "models" / "weights" / "a"


@pytest.mark.parametrize("url", ["gs://bucket/model", "s3://bucket/model", "https://host/model"])
def test_a_url_is_refused_with_the_way_to_copy_it(elsewhere, url):
    for ask in (shipped.model, families.family_of, config_file.load, load_engine):
        with pytest.raises(Refusal, match=f"must be a path of this machine; got {url}.*Copy"):
            ask(url)
    assert not list(elsewhere.glob("*:"))


@pytest.mark.parametrize("open_it", [families.family_of_directory, open_checkpoint, open_tokenizer])
def test_so_is_one_below_the_door(open_it):
    with pytest.raises(Refusal, match=r"must be a path of this machine; got gs://bucket/model.* Copy"):
        open_it("gs://bucket/model")
