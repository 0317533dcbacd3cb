"""Published config.json files: small copies of those that load generate, the others are refused for their reason."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import published_configs as corpus
import pytest
import safetensors.numpy
from flax import nnx

from flexjax import LLM, SamplingParams
from flexjax.model import set_parameter
from flexjax.refusal import Refusal
from models import transformer

PUBLISHED = corpus.read()
LOADS = [p for p in PUBLISHED if not p.refused]
REFUSED = [p for p in PUBLISHED if p.refused]
PROMPT = [5, 6, 7]


def write(hf: Mapping[str, Any], directory: Path) -> Path:
    """A model directory with random weights under the names that the published class gives them."""
    config, rng = transformer.config_from_hf(hf), np.random.default_rng(0)
    model = nnx.eval_shape(lambda: transformer.build(config, dtype=jnp.float32))
    for path, parameter in nnx.to_flat_state(nnx.state(model)):
        values = rng.normal(0.0, 0.2, parameter.shape).astype(np.float32)
        set_parameter(model, path, parameter.replace(values))
    transformer.save(model, directory)
    (directory / "config.json").write_text(json.dumps(hf))
    if "text_config" in hf:
        file = directory / "model.safetensors"
        tensors = {f"language_model.{name}": value for name, value in safetensors.numpy.load_file(file).items()}
        beside = ("vision_tower.encoder.weight", "multi_modal_projector.linear_1.bias")
        safetensors.numpy.save_file(tensors | dict.fromkeys(beside, np.zeros(3, np.float16)), file)
    return directory


def greedy(model: transformer.Transformer, count: int) -> list[int]:
    """Tokens after the prompt by the whole network at each step."""
    tokens = list(PROMPT)
    for _ in range(count):
        # Of one length always, so that each op is compiled once for all models: later tokens change no earlier one.
        hidden, _ = model.dense(jnp.asarray([tokens + [0] * (8 - len(tokens))]))
        found = model.logits(hidden[0])[len(tokens) - 1]
        assert jnp.isfinite(found).all()
        tokens.append(int(found.argmax()))
    return tokens[len(PROMPT) :]


def through_the_engine(directory: Path) -> list[int]:
    llm = LLM.load(directory, dtype="float32", max_num_seqs=1, max_num_batched_tokens=8, max_model_len=16, page_size=8)
    (output,) = llm.generate([PROMPT], SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True))
    llm.close()
    return list(output.outputs[0].token_ids)


def test_the_corpus_is_as_large_as_it_says():
    assert len(PUBLISHED) >= 100 and len(LOADS) >= 60 and len(REFUSED) >= 20
    assert len([p for p in REFUSED if not p.why]) >= 10, "refused inside a class that is served, by a field"
    for p in PUBLISHED:
        assert p.page.startswith("https://") or (p.repository and len(p.commit) == 40 and p.path), p.name


@pytest.mark.parametrize("published", REFUSED, ids=lambda p: p.name)
def test_refused_for_its_reason(published):
    with pytest.raises(Refusal) as caught:
        transformer.config_from_hf(published.config)
    assert published.refused in str(caught.value)
    if published.why:
        assert repr(published.config.get("architectures")) in str(caught.value)


def test_small_copies_load_and_generate(tmp_path):
    for number, p in enumerate(LOADS):
        model = transformer.load(write(corpus.small(p.config), tmp_path / str(number)), dtype=jnp.float32)
        assert len(greedy(model, 2)) == 2, p.name


def first_of_each_class() -> dict[str, corpus.Published]:
    return {(p.config.get("architectures") or ["none"])[0]: p for p in reversed(LOADS)}


QUICK = ("Gemma3ForConditionalGeneration", "none")  # What no other test loads into an engine.


@pytest.mark.parametrize(
    ("name", "published"),
    [
        pytest.param(name, p, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, p in first_of_each_class().items()
    ],
)
def test_a_small_copy_of_each_class_generates_through_the_engine(name, published, tmp_path):
    directory = write(corpus.small(published.config), tmp_path)
    assert through_the_engine(directory) == greedy(transformer.load(directory, dtype=jnp.float32), 2)


def test_the_table_is_up_to_date(caplog):
    with caplog.at_level(logging.ERROR):
        made = corpus.table(corpus.outcomes())
    assert made == corpus.DOC.read_text(), "run `python tests/support/published_configs.py`"
