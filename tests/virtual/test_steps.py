"""The bars that the chips' own compilers read out: no second cache, no byte too many, no weight gathered."""

import dataclasses

import pytest

from flexjax import families
from flexjax.engine.config import EngineConfig
from flexjax.engine.device.step import StepShape
from flexjax.hardware import chips, topology
from flexjax.hardware.mesh import MeshConfig
from flexjax.kernels import bodies_used, registry
from flexjax.virtual import StepReport, Target, abstract_model, compile_steps, program_for

pytestmark = pytest.mark.tpu
BATCH, CONTEXT = 32, 2048
# Four devices share a replica: the TPU kernel takes int8 keys and values of two heads or more.
FOUR = MeshConfig(tensor=4, data=2)


@dataclasses.dataclass(frozen=True)
class Case:
    chip: str
    topology: str
    engine: EngineConfig
    product: str | None = None  # The body that multiplies with weights in fewer bits.


def case(chip: str, weight_dtype: str, product: str) -> Case:
    on_tpu = chip == "v5e"
    mesh = FOUR if on_tpu else None
    engine = EngineConfig(page_size=128, weight_dtype=weight_dtype, cache_dtype="int8", mesh=mesh)
    return Case(chip, "2x4" if on_tpu else "1", engine, product)


CASES = {
    "v5e_bfloat16": Case("v5e", "2x4", EngineConfig(page_size=128)),
    "v5e_int4_cache": Case("v5e", "2x4", EngineConfig(page_size=128, cache_dtype="int4")),
    "v5e_int8": case("v5e", "int8", "xla"),
    "v5e_int4": case("v5e", "int4", "pallas_tpu"),
    "h200_int8": case("h200", "int8", "triton_gpu"),
    "h200_int4": case("h200", "int4", "triton_gpu"),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def decode(request) -> StepReport:
    """Llama-3-8B on eight v5e or one H200, as the engine would decode."""
    made: Case = request.param
    if absent := topology.missing(chips.find(made.chip)):
        pytest.skip(absent)
    target = Target.of(made.chip, made.topology, made.engine.mesh, "bfloat16")
    model = abstract_model(*families.family_of("llama3-8b"), made.engine, target.chip.platform)
    program = program_for(model, made.engine, target, BATCH, CONTEXT)
    registry.forget()
    (report,) = compile_steps(program, target, CONTEXT, [StepShape(True, BATCH, BATCH)])
    used = {op: [choice.body for choice in choices] for op, choices in bodies_used().items()}
    assert used["ragged_paged_attention"] == [{"tpu": "pallas_tpu", "gpu": "triton_gpu"}[target.chip.platform]]
    assert used.get("matmul") == (None if made.product is None else [made.product])
    return report


def test_no_second_copy_of_the_cache_is_held(decode):
    logits = BATCH * 128_256 * 4  # Float32, the largest activations.
    # Of a GPU's these lie in main memory: the model's own, and before, in and after a draw.
    activations = logits * (4 if decode.target.chip.platform == "gpu" else 1)
    assert decode.compiled.footprint.temporaries <= 0.01 * decode.cache + activations
    assert decode.compiled.footprint.results < 2**20  # The cache comes back in its own buffer.


def test_main_memory_sees_weights_and_live_cache_and_little_more(decode):
    assert decode.live_cache == decode.cache
    read = decode.compiled.program.hbm_bytes / (decode.weights + decode.live_cache)
    assert 0.85 <= read <= 1.1  # The embedding table is not read whole.


def test_no_weight_is_gathered_or_sliced_out(decode):
    gathered = [op for op in decode.compiled.program.ops if op.opcode == "all-gather"]
    assert not gathered
    # Two sums a layer, of float32 rows.
    sums = [op for op in decode.compiled.program.collectives if op.turns == 32]
    assert [op.sent_bytes for op in sums] == [BATCH * 4096 * 4] * (2 if decode.target.mesh.size > 1 else 0)
    # In the loop over layers nothing but products and attention moves as much as the smallest weight has.
    smallest = 4096 * 1024 // 2 // decode.target.mesh.size
    copies = [op for op in decode.compiled.program.ops if op.turns == 32 and op.opcode in ("copy", "slice")]
    assert not [op for op in copies if op.hbm_bytes >= smallest]


def test_loops_count_their_turns(decode):
    # The TPU's kernel for int4 sums four groups of so few rows apart, in products of four times the size.
    times = 4 if any(op.label == "int4_matmul" for op in decode.compiled.program.ops) else 1
    products = times * 2 * BATCH * (8.03e9 - 128_256 * 4096)
    attention = 32 * 4 * BATCH * CONTEXT * 32 * 128
    assert decode.compiled.program.flops == pytest.approx((products + attention) / decode.target.mesh.size, rel=0.01)


def test_the_static_time_is_not_below_the_roofline(decode):
    table = 128_256 * 4096 * 2 / decode.target.mesh.size  # Of the embedding a step reads a few rows.
    least = (decode.weights - table + decode.live_cache) / decode.target.limits.bytes_per_s
    assert decode.least_seconds == pytest.approx(least, rel=0.1)
    # Of a GPU's ops nothing but bytes is known: the two are then the same.
    assert decode.least_seconds <= decode.static_seconds < 3 * decode.least_seconds
