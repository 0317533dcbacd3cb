"""The way of a chip whose compiler likes stacked layers and its own layouts, walked on the CPU."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from flexjax.engine import Engine, EngineConfig, Request, SamplingParams
from flexjax.engine.device import runner as runner_module
from flexjax.engine.device import step as step_module
from flexjax.nn import Scan

CONFIG = EngineConfig(dtype="float32", max_num_seqs=3, max_num_batched_tokens=40, max_model_len=56, page_size=8)
PROMPTS = [(5, 6, 7), tuple(range(1, 30)), (9,)]


def answers(engine: Engine) -> list[list[int]]:
    found: dict[str, list[int]] = {}

    def listen(event):
        found.setdefault(event.request_id, []).extend(event.token_ids)

    params = SamplingParams(temperature=0, max_tokens=8)
    for i, prompt in enumerate(PROMPTS):
        engine.submit(Request(str(i), prompt, params, listener=listen))
    while engine.step():
        pass
    return [found[str(i)] for i in range(len(PROMPTS))]


@pytest.fixture
def like_a_tpu(monkeypatch):
    monkeypatch.setattr(step_module, "STACKED_BACKENDS", {"cpu"})
    monkeypatch.setattr(step_module, "PACKED_BACKENDS", frozenset())
    monkeypatch.setattr(runner_module, "LAYOUT_BACKENDS", {"cpu"})


def copy_of(model):
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(jnp.copy, state))


def test_stacked_layers_in_the_compilers_layouts_give_the_same_tokens(tiny_model, like_a_tpu):
    model = copy_of(tiny_model)
    engine = Engine(model, None, CONFIG)
    assert [pages.shape[0] for pages in engine.runner.cache] == [1, 1]  # Layers of each window.
    assert isinstance(engine.runner.model().blocks, Scan)
    assert all(block.mlp.up.weight.get_value().is_deleted() for block in model.blocks)  # Taken over, not held twice.
    got = answers(engine)
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(step_module, "STACKED_BACKENDS", frozenset())
        plain.setattr(runner_module, "LAYOUT_BACKENDS", frozenset())
        assert got == answers(Engine(copy_of(tiny_model), None, CONFIG))


def test_a_model_without_another_form_stays_as_it_is(tiny_model, like_a_tpu):
    stacked = tiny_model.stacked()
    assert step_module.suited(stacked, "cpu") is stacked
    assert step_module.suited(tiny_model, "gpu") is tiny_model
