"""One replica on several devices gives what one device gives, and each device holds its part."""

from pathlib import Path

import pytest
from devices import run_tests
from jax.sharding import AbstractMesh, AxisType

from flexjax.engine.device.placement import Placement
from flexjax.hardware.mesh import AXES, MeshConfig


@pytest.mark.slow
def test_on_eight_devices():
    run_tests(Path(__file__).with_name("on_eight_devices.py"), count=8)


def test_an_engine_is_one_replica():
    mesh = AbstractMesh(tuple(MeshConfig(data=2).sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    with pytest.raises(ValueError, match="one replica; this mesh has data=2. LLM.load and"):
        Placement(mesh)  # type: ignore[arg-type]
