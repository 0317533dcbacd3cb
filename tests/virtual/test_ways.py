import pytest

from flexjax import families
from flexjax.engine.config import EngineConfig
from flexjax.hardware import chips, topology
from flexjax.virtual import Budget, Target, abstract_model
from flexjax.virtual.ways import ways_to_fit

ENGINE = EngineConfig(page_size=128)
needs_libtpu = pytest.mark.skipif(
    topology.missing(chips.find("v5e")) is not None, reason=str(topology.missing(chips.find("v5e")))
)


def ways(name: str, shape: str, batch: int, context: int) -> list[str]:
    target = Target.of("v5e", shape, None, "bfloat16")
    model = abstract_model(*families.family_of(name), ENGINE, "tpu")
    budget = Budget.of(model, ENGINE, target)
    assert budget.missing(batch, context) > 0
    return ways_to_fit(model, ENGINE, target, budget, batch, context)


@pytest.mark.tpu
@needs_libtpu
def test_a_model_whose_weights_do_not_fit():
    chips_, bits, context = ways("llama3-70b", "2x4", batch=8, context=2048)
    assert chips_.startswith("more chips: v5e 4x4 with tensor=16 holds it")
    assert "int8 weights and cache need 8." in bits and "which fits" in bits  # 70.6 GB over eight, and a little.
    assert context == "less context: the weights alone leave no room for one sequence at any length"


@pytest.mark.tpu
@needs_libtpu
def test_a_batch_that_does_not_fit_tells_batch_and_context_that_do():
    _, _, context = ways("llama3-8b", "2x4", batch=1024, context=8192)
    assert "1024 sequences of up to" in context and "sequences of 8192 tokens fit" in context


def test_without_room_for_a_longer_grid_another_chip_is_the_way(tiny, engine, target, budget, monkeypatch):
    monkeypatch.setattr("flexjax.virtual.ways.MOST_DEVICES", 1)
    chips_, *_ = ways_to_fit(tiny, engine, target, budget, 10**5, 4096)
    assert chips_ == "more chips: none of the grids up to 1 devices holds it; choose a chip with more memory"
