"""The models in the box: they load, share a tokenizer, are small, and know Python better than a compressor."""

import json
import platform
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.data import corpus
from flexjax.data.tokenizer import load_tokenizer
from flexjax.train import evaluate
from models import transformer

WEIGHTS = Path(__file__).resolve().parents[2] / "models" / "weights"
NAMES = ["pydoc-7m", "pydoc-1m"]
SAMPLE = ("heapq.py", "textwrap.py", "secrets.py")


def readme_figure(name: str) -> float:
    """Bits per byte as the model's README states them."""
    return float(re.search(r"\| this model[^|]*\| \**([\d.]+)", (WEIGHTS / name / "README.md").read_text())[1])


def test_all_weights_together_are_small():
    assert sum(p.stat().st_size for p in WEIGHTS.rglob("*") if p.is_file()) <= 20 * 10**6


@pytest.mark.parametrize("name", NAMES)
def test_directory_is_complete_and_in_bfloat16(name):
    files = {p.name for p in (WEIGHTS / name).iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    config = json.loads((WEIGHTS / name / "config.json").read_text())
    generation = json.loads((WEIGHTS / name / "generation_config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert config["eos_token_id"] == generation["eos_token_id"] == 0
    assert config["vocab_size"] == load_tokenizer(WEIGHTS / name).get_vocab_size()


def test_target_and_draft_share_their_tokenizer():
    first, second = ((WEIGHTS / name / "tokenizer.json").read_bytes() for name in NAMES)
    assert first == second


@pytest.mark.parametrize("name", NAMES)
def test_beats_xz(name):
    """The target even xz that has read the training text, the draft xz alone."""
    documents = [d for d in corpus.held_out_documents() if d.name in SAMPLE]
    after = corpus.train_documents() if name == "pydoc-7m" else ()
    model = transformer.load(WEIGHTS / name, dtype=jnp.float32)
    score = evaluate.score(evaluate.token_nats(model), load_tokenizer(WEIGHTS / name), documents, context=512)
    assert score.bits_per_byte < evaluate.xz_bits_per_byte(documents, after)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_readme_states_what_evaluate_measures(name):
    made_by = re.search(r"CPython (\d+\.\d+\.\d+)", (WEIGHTS / name / "README.md").read_text())[1]
    if platform.python_version() != made_by:
        pytest.skip(f"the held-out text is that of CPython {made_by}; this is {platform.python_version()}")
    model = transformer.load(WEIGHTS / name, dtype=jnp.float32)
    held_out = corpus.held_out_documents()
    score = evaluate.score(evaluate.token_nats(model), load_tokenizer(WEIGHTS / name), held_out, context=512)
    assert score.bits_per_byte == pytest.approx(readme_figure(name), abs=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_long_contexts_help(name):
    """The second half of a full context is predicted at least as well as the first."""
    model = transformer.load(WEIGHTS / name, dtype=jnp.float32)
    length = model.config.max_position
    tokens = evaluate.tokenize(load_tokenizer(WEIGHTS / name), corpus.held_out_documents())
    windows = np.stack([t[: length + 1] for t in tokens if len(t) > length])[:8]
    nats = np.asarray(evaluate.token_nats(model)(windows))
    assert nats[:, length // 2 :].mean() < nats[:, : length // 2].mean()
