import pytest

from flexjax.bench import cost
from flexjax.hardware import chips


def test_an_hour_costs_the_hourly_price():
    running = chips.Running("NVIDIA H100 80GB HBM3", 2, chips.find("h100"))
    found = cost.of_run(running, 3600.0, 1_000_000)
    assert found.usd_per_million_output_tokens == pytest.approx(2 * chips.find("h100").price.usd_per_hour)
    assert found.kind == "estimated"
    assert chips.find("h100").price.date in found.basis and "2 chips" in found.basis


def test_twice_the_tokens_at_half_the_price_a_token():
    running = chips.Running("cpu", 2, chips.find("cpu"))
    one, two = (cost.of_run(running, 10.0, n).usd_per_million_output_tokens for n in (100, 200))
    assert one == pytest.approx(2 * two)


def test_no_price_no_cost():
    assert cost.of_run(chips.Running("NVIDIA L4", 1, chips.find("l4")), 1.0, 1) is None
    assert cost.of_run(chips.Running("other", 1, None), 1.0, 1) is None
    assert cost.of_run(chips.Running("cpu", 1, chips.find("cpu")), 1.0, 0) is None
