import jax
import pytest

from flexjax import families
from flexjax.hardware import chips, topology
from flexjax.hardware.mesh import MeshConfig
from flexjax.virtual import Target, abstract_model, program_for

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(
        topology.missing(chips.find("v5e")) is not None, reason=str(topology.missing(chips.find("v5e")))
    ),
]


def test_the_preset_cuts_the_chips_into_replicas():
    target = Target.of("v5e", "4x4", None, "bfloat16")
    assert (target.num_devices, target.num_replicas, target.mesh.size) == (16, 2, 8)
    assert str(target) == "16 × Google TPU v5e (4x4), tensor parallel over 8, 2 replicas"


def test_a_mesh_of_ones_own():
    target = Target.of("v5e", "2x2", MeshConfig(tensor=2, data=-1), "bfloat16")
    assert (target.num_replicas, target.mesh.shape["tensor"]) == (2, 2)


def test_layers_are_stacked_for_tpus_alone(engine):
    family, hf = families.family_of("gpt2")
    stacked, plain = (abstract_model(family, hf, engine, platform) for platform in ("tpu", "gpu"))
    assert (stacked.loops, plain.loops) == (True, False)


def test_the_program_holds_every_sequence_at_full_length(tiny, engine):
    target = Target.of("v5e", "1x1", None, "bfloat16")
    program = program_for(tiny, engine, target, batch=10, context=100)
    (pages,) = program.cache
    assert pages.shape[1] == 10 * 7 + 1
    assert max(shape.num_seqs for shape in program.shapes) == 10
    assert all(x.sharding.mesh == target.mesh for x in program.weights)


@pytest.mark.parametrize(
    ("shape", "rows", "split"),
    [("2x2", 8, True), ("2x4", 2, False)],  # Gemma 3 1B has one kv head, which four query heads can share, not eight.
)
def test_a_key_is_never_split_from_its_value(shape, rows, split, engine):
    target = Target.of("v5e", shape, None, "bfloat16")
    model = abstract_model(*families.family_of("gemma3-1b"), engine, "tpu")
    cache = program_for(model, engine, target, batch=8, context=64).cache
    assert [pages.shape[0] for pages in cache] == [22, 4]  # Layers with a window, and without.
    for pages in cache:
        assert pages.shape[3] == rows
        assert pages.sharding.shard_shape(pages.shape)[3] == 2
        assert (pages.sharding.spec != jax.P()) == split
