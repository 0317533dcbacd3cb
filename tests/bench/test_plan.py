import dataclasses

import pytest

from flexjax.bench import plan
from flexjax.bench.plan import OfflineConfig, PlanConfig, PoissonConfig, SingleStreamConfig
from flexjax.bench.scenario import OVERLOAD, UNKNOWN_ENDS
from flexjax.refusal import Refusal

RATES = {"slow": 50.0, "middle": 200.0, "fast": 300.0}


@pytest.fixture
def config() -> PlanConfig:
    return PlanConfig(
        scenarios=("SingleStream", "Offline", "Server", "Interactive"),
        first_and_last=(),
        single_stream=SingleStreamConfig(),
        offline=OfflineConfig(queries=64, min_duration_s=4.0),
        server=PoissonConfig(of_slowest=0.7),
        interactive=PoissonConfig(rate_per_s=12.0, ttft_limit_ms=500.0, tpot_limit_ms=30.0),
        overload=0.0,
        seed=7,
    )


def test_offline_fills_each_side_s_window(config, items):
    loads, _ = plan.loads(config, RATES, items, None)
    queries = {side: s.queries for side, s in loads[1].scenarios.items()}
    assert queries == {"slow": 210, "middle": 840, "fast": 1260}
    assert all(queries[side] > 4.0 * rate for side, rate in RATES.items())


def test_arrivals_come_at_one_rate_that_the_slowest_sustains(config, items):
    loads, notes = plan.loads(config, RATES, items, None)
    assert {s.rate_per_s for s in loads[2].scenarios.values()} == {35.0}
    assert {s.rate_per_s for s in loads[3].scenarios.values()} == {12.0}
    assert notes[0].startswith("Server: 35.0 requests/s for every side, 70% of what slow does offline")


def test_overload_and_unknown_ends_are_for_the_first_and_the_last(config, items):
    loads, notes = plan.loads(dataclasses.replace(config, overload=2.0), RATES, items, items[:4])
    ends, overload = loads[-2:]
    assert set(ends.scenarios) == set(overload.scenarios) == {"slow", "fast"}
    assert len(ends.items) == 4 and {s.title for s in ends.scenarios.values()} == {UNKNOWN_ENDS}
    assert {(s.title, s.name, s.rate_per_s) for s in overload.scenarios.values()} == {(OVERLOAD, "Server", 100.0)}
    assert "not compared" in notes[-1]


def test_a_scenario_can_be_that_of_the_first_and_the_last_side_alone(config, items):
    config = dataclasses.replace(config, scenarios=("Offline",), first_and_last=("Server",))
    offline, server = plan.loads(config, RATES, items, None)[0]
    assert set(offline.scenarios) == set(RATES) and set(server.scenarios) == {"slow", "fast"}


def test_a_rate_that_the_slowest_cannot_sustain_is_refused():
    with pytest.raises(Refusal, match="of_slowest"):
        PoissonConfig(of_slowest=1.2)
