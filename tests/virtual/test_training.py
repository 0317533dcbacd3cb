"""The train step on described devices: what it holds, what crosses, and what to do where it does not fit."""

import dataclasses

import pytest

from flexjax import families
from flexjax.hardware import aot, chips, topology
from flexjax.hardware.mesh import MeshConfig
from flexjax.train.step import LoopConfig
from flexjax.virtual import Target, Training, TrainReport, compile_training
from flexjax.virtual.training import ways_to_train

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(
        topology.missing(chips.find("v5e")) is not None, reason=str(topology.missing(chips.find("v5e")))
    ),
]
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
LAYER = 256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 512
PRODUCTS = 4 * LAYER + 1024 * 256  # Parameters that rows are multiplied with.
PARAMETERS = PRODUCTS + 1024 * 256 + 9 * 256
CONFIG = Training(batch_size=8, length=256, mesh=MeshConfig(fsdp=4))
LLAMA = families.find_family("LlamaForCausalLM")


@pytest.fixture(scope="module")
def report() -> TrainReport:
    return compile_training(LLAMA, TINY, CONFIG, Target.for_training("v5e", "2x2", CONFIG.mesh))


def test_weights_and_optimiser_are_split_and_written_in_place(report):
    assert report.fits
    assert report.weights == PARAMETERS  # Float32, over four.
    assert report.optimizer == pytest.approx(2 * PARAMETERS, rel=1e-4)  # And two counts.
    footprint = report.compiled.footprint
    assert footprint.arguments == pytest.approx(3 * PARAMETERS, rel=0.02)
    assert footprint.results < 2**16


def test_products_are_counted_through_the_loops(report):
    """Forward, backward twice that, and every layer's forward once more."""
    rows = CONFIG.batch_size * CONFIG.length
    attention = 4 * rows * CONFIG.length * 256 * 4  # Of all layers, forward; masked products are computed too.
    least = 2 * rows * PRODUCTS * 3 + 2 * rows * 4 * LAYER + 4 * attention
    # The compiler need not compute again the last product of a layer, nor what nobody reads of it.
    assert report.compiled.program.flops * 4 == pytest.approx(least, rel=0.15)


def test_weights_are_gathered_and_gradients_summed(report):
    kinds = {op.opcode for op in report.compiled.program.collectives}
    assert "all-gather" in kinds and kinds & {"reduce-scatter", "all-reduce"}
    assert report.least_seconds < report.static_seconds


def test_what_cannot_fit_is_told_without_a_compile(report, monkeypatch):
    limits = dataclasses.replace(report.target.limits, hbm_bytes=3 * PARAMETERS)
    small = dataclasses.replace(report.target, limits=limits)
    monkeypatch.setattr(aot, "compile", None)
    made = compile_training(LLAMA, TINY, CONFIG, small)
    assert isinstance(made.outcome, aot.TooLarge)
    assert made.outcome.missing_bytes == pytest.approx(PARAMETERS, rel=0.01)  # The gradients.
    chips_, tokens, kept = ways_to_train(LLAMA, TINY, made)
    assert chips_.startswith("more chips: v5e 4x2 with fsdp=8 takes 0.0 of 15.8 GiB")
    assert "alone do not fit" in tokens and "computed again already" in kept


def test_the_tokens_that_are_left_room_for_are_told(report):
    arrays = 2 * report.weights + report.optimizer
    kept = dataclasses.replace(CONFIG, loop=LoopConfig())
    outcome = aot.TooLarge(arrays + 4 * 10**6, arrays + 10**6, 0.0)
    _, tokens, again = ways_to_train(LLAMA, TINY, dataclasses.replace(report, config=kept, outcome=outcome))
    assert "about 512 tokens a step" in tokens  # A quarter of 8 × 256.
    assert "loop.recompute_layers=True" in again
