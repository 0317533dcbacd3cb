import jax
import pytest

from flexjax import families
from flexjax.engine.config import EngineConfig
from flexjax.engine.device.step import StepShape
from flexjax.hardware.aot import Compiled, Footprint, TooLarge
from flexjax.hardware.chips import find
from flexjax.hardware.mesh import MeshConfig, make_mesh
from flexjax.hardware.program import Op, Program
from flexjax.hardware.roofline import Limits
from flexjax.virtual import Budget, StepReport, Target, abstract_model

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


@pytest.fixture(scope="session")
def engine() -> EngineConfig:
    return EngineConfig(page_size=16)


@pytest.fixture(scope="session")
def target() -> Target:
    """A chip with round figures, over this machine's CPU: nothing is compiled for it."""
    limits = Limits(hbm_bytes=2**26 + 10**7, bytes_per_s=1e9, flops_per_s=1e12, link_bytes_per_s=1e9, clock_hz=1e9)
    return Target(find("v5e"), "1x1", 1, make_mesh(MeshConfig(), jax.devices()[:1]), 1, limits)


@pytest.fixture(scope="session")
def tiny():
    return abstract_model(families.find_family("LlamaForCausalLM"), TINY, EngineConfig(), "tpu")


@pytest.fixture(scope="session")
def budget(tiny, engine, target) -> Budget:
    return Budget.of(tiny, engine, target)


@pytest.fixture(scope="session")
def reports(target) -> list[StepReport]:
    """Two decode steps, a mixed one, and one that does not fit."""

    def made(shape: StepShape, outcome) -> StepReport:
        return StepReport(shape, 256, outcome, weights=10**6, cache=10**6, live_cache=10**5, target=target)

    def ran(milliseconds: int) -> Compiled:
        ops = (
            Op("a.1", "fusion", "...D,DO->...O/dot_general", 3, 1000, 10**6, milliseconds * 10**5),
            Op("b.2", "kernel", "ragged_paged_attention", 3, 9 * 10**4 * milliseconds, 0, None),
            Op("b.3", "kernel", "matmul", 3, 10**4 * milliseconds, 0, None),
            Op("c.3", "all-reduce", "...O,OD->...D/dot_general", 3, 0, 0, None, sent_bytes=1000, group=4),
        )
        return Compiled(Footprint(2 * 10**6, 0, 3000, 4000), Program(ops), seconds=1.5)

    return [
        made(StepShape(True, 8, 8), ran(1)),
        made(StepShape(True, 16, 16), ran(2)),
        made(StepShape(False, 32, 16), ran(5)),
        made(StepShape(False, 64, 16), TooLarge(3 * 2**30, 2**30, 0.5)),
    ]
