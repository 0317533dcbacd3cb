"""Hugging Face directories: round trips, what does not fit, and the memory that loading takes."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from flexjax.families import families, family_of_directory, find_family
from flexjax.model_files import read_json
from models import transformer
from models.transformer import Layer, Rope, TransformerConfig, hf_published, params

GOLDEN = sorted(path.parent for path in (Path(__file__).parent / "golden").glob("*/config.json"))
FILE = "model.safetensors"


def golden(name: str) -> Path:
    return Path(__file__).parent / "golden" / name


def state(model) -> dict:
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}


def assert_same(one, other):
    one, other = state(one), state(other)
    assert set(one) == set(other)
    for path, value in one.items():
        assert value.dtype == other[path].dtype
        np.testing.assert_array_equal(value.view(np.uint8), other[path].view(np.uint8))


@pytest.fixture
def edit(tmp_path):
    """Copies a golden directory with its tensors changed by a function, and gives the copy."""

    def make(name, change):
        folder = tmp_path / "edited"
        shutil.copytree(golden(name), folder)
        tensors = safetensors.numpy.load_file(folder / FILE)
        safetensors.numpy.save_file(change(tensors), folder / FILE)
        return folder

    return make


def test_the_entry_points_lead_here():
    for folder in GOLDEN:
        architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
        assert find_family(architecture) is transformer


def test_a_directory_without_architectures_leads_here(edit):
    folder = edit("qwen3", lambda tensors: tensors)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(without(config, "architectures")))
    assert family_of_directory(folder)[0] is transformer
    assert_same(transformer.load(folder, dtype=jnp.float32), transformer.load(golden("qwen3"), dtype=jnp.float32))
    odd = ({"architectures": [5]}, {"model_type": ["qwen3"]})
    for fields in ({"model_type": "falcon"}, {}, {"architectures": ["A", "B"]}, {"architectures": "A"}, *odd):
        (folder / "config.json").write_text(json.dumps(fields))
        with pytest.raises(ValueError, match="exactly one entry in 'architectures', or none and a 'model_type' among"):
            family_of_directory(folder)


def test_every_class_that_is_read_is_registered():
    declared = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["entry-points"]
    registered = {name for name, value in declared["flexjax.models"].items() if value == "models.transformer"}
    assert registered == {*hf_published.PUBLISHED, *hf_published.WRAPPERS, *hf_published.SPELLINGS}
    assert registered <= families().keys(), "the project is not installed as it stands: run `make setup`"


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_a_saved_model_is_the_published_one_and_loads_bit_equal(folder, tmp_path):
    model = transformer.load(folder, dtype=jnp.float32)
    transformer.save(model, tmp_path / "once")
    published, saved = (safetensors.numpy.load_file(f / FILE) for f in (folder, tmp_path / "once"))
    assert set(saved) == set(published)
    for name, value in published.items():
        np.testing.assert_array_equal(saved[name], value)

    again = transformer.load(tmp_path / "once", dtype=jnp.float32)
    assert again.config == model.config
    assert_same(again, model)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_sixteen_bits_survive_save_load_save(dtype, tmp_path):
    model = transformer.load(golden("gemma3"), dtype=dtype)
    transformer.save(model, tmp_path / "once", max_shard_bytes=40_000)
    again = transformer.load(tmp_path / "once", dtype=dtype)
    assert_same(again, model)
    transformer.save(again, tmp_path / "twice", max_shard_bytes=40_000)
    files = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert len(files) > 3 and files == sorted(path.name for path in (tmp_path / "twice").iterdir())
    for name in files:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    # Wider on request, and exactly the same numbers.
    wide = transformer.load(tmp_path / "once", dtype=jnp.float32)
    for path, value in state(wide).items():
        np.testing.assert_array_equal(value, state(model)[path].astype(np.float32))


def test_saving_over_the_directory_a_model_came_from(tmp_path):
    folder = shutil.copytree(golden("llama2"), tmp_path / "model")
    model = transformer.load(folder, dtype=jnp.float32)
    before = state(model)
    transformer.save(model, folder)
    assert_same(transformer.load(folder, dtype=jnp.float32), model)
    for path, value in state(model).items():
        np.testing.assert_array_equal(value, before[path])


def test_gpt2_without_prefix_and_with_its_mask_buffers(edit):
    def bare(tensors):
        bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
        return bare | {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8)}

    assert_same(
        transformer.load(edit("gpt2", bare), dtype=jnp.float32), transformer.load(golden("gpt2"), dtype=jnp.float32)
    )


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("where", ["layers.0.self_attn.rotary_emb.", "rotary_emb."])
def test_llama_with_its_rotary_buffers(edit, prefix, where):
    def older(tensors):
        older = {name.replace("model.", prefix): value for name, value in tensors.items()}
        buffers = ("inv_freq", "cos_cached", "sin_cached")
        return older | {f"{prefix}{where}{name}": np.ones(8, np.float32) for name in buffers}

    loaded = transformer.load(edit("llama2", older), dtype=jnp.float32)
    assert_same(loaded, transformer.load(golden("llama2"), dtype=jnp.float32))


def test_a_tied_head_may_be_stored_twice_but_not_differ(edit, tmp_path):
    tied = edit("qwen3", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"]})
    assert_same(transformer.load(tied, dtype=jnp.float32), transformer.load(golden("qwen3"), dtype=jnp.float32))
    shutil.rmtree(tied)
    untied = edit("qwen3", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight"):
        transformer.load(untied, dtype=jnp.float32)


def without(tensors: dict, name: str) -> dict:
    return {n: value for n, value in tensors.items() if n != name}


def test_a_tied_head_may_be_all_that_is_stored(edit):
    def only_head(tensors):
        return without(tensors, "model.embed_tokens.weight") | {"lm_head.weight": tensors["model.embed_tokens.weight"]}

    assert_same(
        transformer.load(edit("qwen3", only_head), dtype=jnp.float32),
        transformer.load(golden("qwen3"), dtype=jnp.float32),
    )


@pytest.mark.parametrize("missing", ["lm_head.weight", "model.embed_tokens.weight"])
def test_an_untied_model_needs_both(edit, missing):
    folder = edit("llama2", lambda tensors: without(tensors, missing))
    with pytest.raises(ValueError, match=rf"{missing} .* is missing \(.* must say tie_word_embeddings = true\)"):
        transformer.load(folder, dtype=jnp.float32)


def wrapped(tensors: dict, layout: str) -> dict:
    """The tensors as transformers writes those of a language model with vision before and since 4.52."""
    beside = {"vision_tower.x.weight": np.ones(3, np.uint8), "multi_modal_projector.y": np.ones((2, 2), np.float16)}
    if layout == "older":
        return {f"language_model.{name}": value for name, value in tensors.items()} | beside
    inside = {name.replace("model.", "model.language_model.", 1): value for name, value in tensors.items()}
    return inside | {f"model.{name}": value for name, value in beside.items()}


@pytest.mark.parametrize("layout", ["older", "newer"])
def test_a_language_model_inside_a_class_with_vision(edit, layout, monkeypatch):
    monkeypatch.setattr(params, "family_of_directory", lambda folder: (None, read_json(Path(folder) / "config.json")))
    folder = edit("gemma3", lambda tensors: wrapped(tensors, layout))
    text = json.loads((folder / "config.json").read_text())
    del text["architectures"]
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    (folder / "config.json").write_text(json.dumps(outer))
    assert_same(transformer.load(folder, dtype=jnp.float32), transformer.load(golden("gemma3"), dtype=jnp.float32))


def test_a_tensor_stored_under_both_layouts_is_refused(edit, monkeypatch):
    monkeypatch.setattr(params, "family_of_directory", lambda folder: (None, read_json(Path(folder) / "config.json")))
    folder = edit("gemma3", lambda tensors: wrapped(tensors, "older") | wrapped(tensors, "newer"))
    text = json.loads((folder / "config.json").read_text())
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    (folder / "config.json").write_text(json.dumps(outer))
    with pytest.raises(ValueError, match="hold model.* twice, as language_model.* and as model.language_model"):
        transformer.load(folder, dtype=jnp.float32)


QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: v for n, v in t.items() if n != QUERY}, rf"{QUERY} \[32, 32\] is missing"),
        (lambda t: t | {QUERY: t[QUERY][:-1]}, rf"{QUERY} is \[31, 32\], not \[32, 32\]"),
        (lambda t: t | {QUERY: t[QUERY].astype(np.int8)}, f"{QUERY} is int8, not one of bfloat16"),
        (lambda t: t | {"model.layers.2.mlp.up_proj.weight": t[QUERY]}, "layers.2.mlp.up_proj.* not part of the model"),
    ],
    ids=["missing", "misshaped", "quantised", "unexpected"],
)
def test_weights_that_do_not_fit(edit, change, message):
    with pytest.raises(ValueError, match=message):
        transformer.load(edit("llama2", change), dtype=jnp.float32)


def test_a_vocabulary_that_does_not_fit(edit):
    folder = edit("llama2", lambda t: t)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 161}))
    with pytest.raises(ValueError, match=r"embed_tokens.weight is \[160, 32\], not \[161, 32\]"):
        transformer.load(folder, dtype=jnp.float32)


def test_place_receives_every_parameter_with_its_axes():
    seen = {}

    def place(value, axes):
        seen[axes] = seen.get(axes, 0) + 1
        return jnp.asarray(value)

    model = transformer.load(golden("llama2"), dtype=jnp.float32, place=place)
    assert sum(seen.values()) == len(state(model))
    assert seen["embed", "kv_heads", "head_dim"] == 2 * model.config.num_layers


MEASURE = """
import resource, sys, threading, time
import jax.numpy as jnp
from models import transformer
from models.transformer import Layer, Rope, TransformerConfig

def resident():  # bytes, now
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

directory, dtype = sys.argv[1:]
jnp.ones(8).sum().block_until_ready()
before, peak, done = resident(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.0005)

watcher = threading.Thread(target=watch)
watcher.start()
model = transformer.load(directory, dtype=dtype)
done = True
watcher.join()
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_loading_takes_at_most_a_fifth_more_memory_than_the_checkpoint(tmp_path):
    """On a CPU the weights themselves count, so a second copy would show as a factor of two."""
    config = TransformerConfig(
        "LlamaForCausalLM",
        vocab_size=16_000,
        d_model=1024,
        num_heads=16,
        num_kv_heads=8,
        head_dim=64,
        d_ff=2816,
        max_position=1024,
        layers=(Layer(None, Rope()),) * 8,
    )
    transformer.save(transformer.build(config, dtype=jnp.bfloat16), tmp_path, max_shard_bytes=100_000_000)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert size > 200_000_000
    command = [sys.executable, "-c", MEASURE, str(tmp_path), "bfloat16"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert int(run.stdout) <= 1.2 * size, f"{int(run.stdout) / size:.2f} x the checkpoint"
