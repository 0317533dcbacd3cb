"""Layers in stages give what layers in a row give, and what does not divide is refused with a way out."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from devices import run_tests
from jax.sharding import AbstractMesh, AxisType

from flexjax.hardware.mesh import AXES, MeshConfig
from flexjax.hardware.pipeline import pipeline, stages


@pytest.mark.slow
def test_on_eight_devices():
    run_tests(Path(__file__).with_name("pipeline_on_eight_devices.py"), count=8)


def test_without_a_mesh_there_is_one_stage():
    assert stages() == 1


@pytest.mark.parametrize(
    ("microbatches", "layers", "batch", "message"),
    [
        (6, 8, 24, r"must be a multiple of stage=4; got 6. A pipeline of 4 idles for 43% of its time, of 16 idles"),
        (0, 8, 24, "must be a multiple of stage=4; got 0"),
        (8, 10, 16, r"must divide by stage=4; it is 10. Run 2 of them outside the pipeline"),
        (8, 8, 24, r"must divide by 8 microbatches × fsdp=2; it has 24 examples. Take 32 of them, or other"),
    ],
)
def test_an_error_states_rule_values_and_way_out(microbatches, layers, batch, message):
    sizes = MeshConfig(stage=4, fsdp=2).sizes
    mesh = AbstractMesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    weights, examples = (jax.ShapeDtypeStruct((n, 3), jnp.float32) for n in (layers, batch))
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda w, x: pipeline(lambda w, x: x, w, x, microbatches=microbatches), weights, examples)
