"""The bars that the real TPU compiler reads out: no second cache, no byte too many, no weight gathered."""

import pytest

from flexjax import causal_lm
from flexjax.engine.config import EngineConfig
from flexjax.engine.step import StepShape
from flexjax.hardware import chips, topology
from flexjax.hardware.mesh import MeshConfig
from flexjax.kernels import bodies_used, registry
from flexjax.virtual import StepReport, Target, abstract_model, compile_steps, program_for

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(
        topology.missing(chips.find("v5e")) is not None, reason=str(topology.missing(chips.find("v5e")))
    ),
]
BATCH, CONTEXT = 32, 2048


ENGINES = {
    "bfloat16": EngineConfig(page_size=128),
    # Four devices share a replica: the kernel takes int8 keys and values of two heads or more.
    "int8": EngineConfig(page_size=128, weight_dtype="int8", cache_dtype="int8", mesh=MeshConfig(tensor=4, data=2)),
}


@pytest.fixture(scope="module", params=ENGINES.values(), ids=ENGINES)
def decode(request) -> StepReport:
    """Llama-3-8B on eight v5e, as the engine would decode."""
    target = Target.of("v5e", "2x4", request.param.mesh, "bfloat16")
    model = abstract_model(*causal_lm.family_of("llama3-8b"), request.param, "tpu")
    program = program_for(model, request.param, target, BATCH, CONTEXT)
    registry.forget()
    (report,) = compile_steps(program, target, CONTEXT, [StepShape(True, BATCH, BATCH)])
    assert [choice.body for choice in bodies_used()["ragged_paged_attention"]] == ["pallas_tpu"]
    return report


def test_no_second_copy_of_the_cache_is_held(decode):
    activations = BATCH * 128_256 * 4  # Float32 logits, the largest.
    assert decode.compiled.footprint.temporaries <= 0.01 * decode.cache + activations
    assert decode.compiled.footprint.results < 2**20  # The cache comes back in its own buffer.


def test_main_memory_sees_weights_and_live_cache_and_little_more(decode):
    assert decode.live_cache == decode.cache
    read = decode.compiled.program.hbm_bytes / (decode.weights + decode.live_cache)
    assert 0.9 <= read <= 1.1  # The embedding table is not read whole.


def test_no_weight_is_gathered(decode):
    gathered = [op for op in decode.compiled.program.ops if op.opcode == "all-gather"]
    assert not gathered
    # Two sums a layer, of float32 rows.
    sums = [op for op in decode.compiled.program.collectives if op.turns == 32]
    assert [op.sent_bytes for op in sums] == [BATCH * 4096 * 4] * 2


def test_loops_count_their_turns(decode):
    products = 2 * BATCH * (8.03e9 - 128_256 * 4096)
    attention = 32 * 4 * BATCH * CONTEXT * 32 * 128
    assert decode.compiled.program.flops == pytest.approx((products + attention) / decode.target.mesh.size, rel=0.01)


def test_the_static_time_lies_above_the_roofline(decode):
    least = (decode.weights + decode.live_cache) / 819e9
    assert decode.least_seconds == pytest.approx(least, rel=0.1)
    assert decode.least_seconds < decode.static_seconds < 3 * decode.least_seconds
