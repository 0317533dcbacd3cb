"""The engine on every serving mesh of up to eight devices: run by test_replicas.py in a process that has them."""

from pathlib import Path

import jax
import numpy as np
import pytest

from flexjax import LLM, SamplingParams
from flexjax.engine import Replicas
from flexjax.hardware.mesh import MeshConfig, presets

FOLDER = Path(__file__).parents[2] / "models" / "transformer" / "golden" / "llama3"  # 8 heads, 2 kv heads.
SIZES = dict(dtype="float32", max_num_seqs=4, max_num_batched_tokens=32, page_size=8, max_model_len=112)
MESHES = sorted(
    {(size, config) for (_, purpose, size), config in presets().items() if purpose == "serving" and 1 < size <= 8},
    key=str,
)
PARAMS = [
    SamplingParams(temperature=0, max_tokens=24, ignore_eos=True),
    SamplingParams(temperature=1, top_p=0.9, seed=3, max_tokens=24, ignore_eos=True),
    SamplingParams(temperature=0.7, top_k=20, presence_penalty=0.5, repetition_penalty=1.2, seed=4, max_tokens=24),
    SamplingParams(temperature=0, max_tokens=16, logprobs=3, n=2),
]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    golden = np.load(FOLDER / "golden.npz")
    return [golden[f"prompt_{i % 3}"].tolist() for i in range(len(PARAMS))]


@pytest.fixture(scope="module")
def unsplit(prompts) -> list:
    llm = LLM.load(FOLDER, **SIZES)
    outputs = llm.generate(prompts, PARAMS)
    llm.close()
    assert list(outputs[0].outputs[0].token_ids) == np.load(FOLDER / "golden.npz")["greedy_0"][:24].tolist()
    return outputs


def test_the_presets_hold_both_kinds():
    configs = [config for _, config in MESHES]
    assert MeshConfig(tensor=8) in configs and MeshConfig(data=2, tensor=2) in configs


@pytest.mark.parametrize(("size", "mesh"), MESHES, ids=str)
def test_every_preset_gives_the_same_tokens(size, mesh, prompts, unsplit):
    """Greedy, sampled by seed, penalised, with log-probabilities: all as on one device."""
    llm = LLM.load(FOLDER, mesh=mesh, devices=jax.devices()[:size], **SIZES)
    outputs = llm.generate(prompts, PARAMS)
    for got, want in zip(outputs, unsplit, strict=True):
        assert [o.token_ids for o in got.outputs] == [o.token_ids for o in want.outputs]
        for mine, theirs in zip(got.outputs, want.outputs, strict=True):
            for a, b in zip(mine.logprobs or (), theirs.logprobs or (), strict=True):
                assert a == pytest.approx(b, abs=2e-4)
    if mesh.data > 1:
        assert isinstance(llm.engine, Replicas)
        made = [engine.stats.output_tokens for engine in llm.engine.engines]
        assert min(made) > 0 and sum(made) == llm.engine.stats.output_tokens, "every replica had its share"
        used = [set(engine.placement.mesh.devices.flat) for engine in llm.engine.engines]
        assert len(set.union(*used)) == size == sum(map(len, used)), "replicas share no device"
        for engine, devices in zip(llm.engine.engines, used, strict=True):
            assert engine.pool.num_used == 0
            assert all(leaf.devices() == devices for leaf in jax.tree.leaves(engine.runner.cache))
    llm.close()
    assert llm.engine.num_open == 0
