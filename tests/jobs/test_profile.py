"""What can be profiled."""

import pytest

from flexjax.engine import EngineConfig
from flexjax.hardware.mesh import MeshConfig
from flexjax.jobs import profile
from flexjax.refusal import Refusal


@pytest.mark.parametrize("data", [2, -1])
def test_one_replica_is_profiled(data):
    with pytest.raises(Refusal, match=f"data=1; got data={data}"):
        profile.Config(engine=EngineConfig(mesh=MeshConfig(data=data)))
    assert profile.Config(engine=EngineConfig(mesh=MeshConfig(tensor=2))).rounds == 7
