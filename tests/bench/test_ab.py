import dataclasses
import math

import pytest

from flexjax.bench import ab
from flexjax.bench.metrics import summarise
from flexjax.bench.result import RequestTimeline, SideRun, StartUp, Verdict
from flexjax.bench.scenario import Limits, Scenario

OFFLINE = Scenario("Offline", queries=16)


@pytest.fixture
def side(fake_target):
    return lambda name="fake", **options: ab.Side(fake_target(name, **options), StartUp(0.25, 0.5))


def test_a_run_holds_what_happened(side, items, tmp_path):
    run = ab.measure(side("one"), OFFLINE, items, round_index=3, log_directory=tmp_path)
    assert (run.side, run.scenario, run.round, run.verdict) == ("one", "Offline", 3, Verdict(True))
    assert run.metrics.completed == len(run.timelines) == 16
    assert run.metrics.output_tokens == sum(t.n_out for t in run.timelines)
    assert run.loadgen["result_validity"] == "VALID" and run.startup == StartUp(0.25, 0.5)
    assert len(run.samples) == 16 and all(0 <= s.time_s <= run.metrics.duration_s for s in run.samples)
    assert run.described == {"software": "fake", "steps": 16, "host_s": 32.0, "device_s": 0.0}
    assert run.peak_memory_bytes > 2**20


def test_a_target_prepares_before_its_first_request(side, items, tmp_path):
    one = side()
    one.target.prepare = lambda: prepared.append(len(one.target.seen))
    prepared: list[int] = []
    for index in range(2):
        ab.measure(one, OFFLINE, items, round_index=index, log_directory=tmp_path)
    assert prepared == [0, 16]


def test_samples_of_an_earlier_run_are_left_out(side, items, tmp_path):
    one = side()
    ab.measure(one, OFFLINE, items, round_index=0, log_directory=tmp_path)
    again = ab.measure(one, OFFLINE, items, round_index=1, log_directory=tmp_path)
    assert len(again.samples) == again.described["steps"] == 16 and again.described["host_s"] == 32.0
    assert len(one.target.stats().samples) == 32


def test_a_compile_inside_the_window_makes_it_invalid(side, items, tmp_path):
    import jax

    one = side()
    whole = one.target.submit

    def submit(request):
        if request.id == "q00001":
            jax.jit(lambda x: x * 3 + 1)(float(len(request.prompt_token_ids))).block_until_ready()
        whole(request)

    one.target.submit = submit
    run = ab.measure(one, OFFLINE, items, round_index=0, log_directory=tmp_path)
    assert not run.verdict.valid and "compiled inside the measured window" in run.verdict.reasons[0]


@pytest.mark.parametrize(("clipped", "valid"), [(1, True), (2, False)])
def test_a_cache_that_clips_more_than_a_thousandth_makes_it_invalid(clipped, valid, side, items, tmp_path):
    one = side()
    bare = one.target.stats

    def stats():
        count = len(bare().samples)  # A thousand values a request.
        return dataclasses.replace(bare(), cache_values_written=1000 * count, cache_values_clipped=clipped * count)

    one.target.stats = stats
    run = ab.measure(one, OFFLINE, items, round_index=0, log_directory=tmp_path)
    assert run.described["cache_values_written"] == 16_000
    assert run.described["cache_values_clipped"] == clipped * 16
    assert run.verdict.valid is valid
    if not valid:
        assert "the cache clipped 0.20% of its keys and values, more than 0.1%" in run.verdict.reasons[0]


def test_replay_is_measured_by_the_same_code(side, items, tmp_path):
    timed = [dataclasses.replace(item, offset_s=0.01 * i) for i, item in enumerate(items)]
    scenario = Scenario("replay", queries=16, limits=Limits(600_000, 60_000))
    run = ab.measure(side(), scenario, timed, round_index=0, log_directory=tmp_path)
    assert run.verdict.valid and run.loadgen == {} and run.metrics.goodput_fraction == 1.0


def test_rounds_alternate_and_share_their_seeds(side):
    a, b = side("a"), side("b")
    scenarios = [OFFLINE, Scenario("SingleStream", 64, percentile=0.9, seed=5)]
    order = [(r, s.target.name, x.name, x.seed) for r, s, x in ab.alternate([a, b], scenarios, rounds=2)]
    assert order == [
        (r, name, scenario.name, scenario.seed + r) for r in (0, 1) for name in "ab" for scenario in scenarios
    ]


def run_of(side, round_index, seconds, scenario="Offline", n_out=10, scheduled=None):
    times = tuple(seconds * (i + 1) / n_out for i in range(n_out))
    one = RequestTimeline("q", 0.0, scheduled, times[0], seconds, 5, n_out, n_out, times)
    return SideRun(
        side=side,
        scenario=scenario,
        round=round_index,
        metrics=summarise([one], [], None),
        verdict=Verdict(True),
        timelines=(one,),
        samples=(),
        described={},
        startup=StartUp(0, 0),
        peak_memory_bytes=None,
        energy=None,
        loadgen={},
        started_at="2026-01-01T00:00:00+00:00",
    )


def test_ratios_are_taken_within_a_round_and_above_one_b_is_better():
    # B is 2, 4 and 3 times faster; the machine slowed down by ten in the second round, which cancels out.
    runs = [run_of("a", 0, 2.0), run_of("a", 1, 20.0), run_of("a", 2, 3.0)]
    runs += [run_of("b", 0, 1.0), run_of("b", 1, 5.0), run_of("b", 2, 1.0)]
    found = {c.measure: c for c in ab.compare(runs, ("a", "b"))}
    for measure, better in (("output_tokens_per_s", "higher"), ("ttft_p99_ms", "lower"), ("e2e_p50_ms", "lower")):
        c = found[measure]
        assert (c.better, c.scenario) == (better, "Offline")
        assert (c.ratio, c.ratio_min, c.ratio_max) == pytest.approx((3, 2, 4))
    assert found["output_tokens_per_s"].a == pytest.approx(10 / 3)
    assert found["e2e_p50_ms"].b == pytest.approx(1000)


def test_a_measure_that_one_side_lacks_is_not_compared():
    runs = [run_of("a", 0, 2.0, scheduled=0.5), run_of("b", 0, 1.0)]
    assert math.isnan(runs[1].metrics.queue_ms.p50)
    measures = {c.measure for c in ab.compare(runs, ("a", "b"))}
    assert "ttft_p50_ms" in measures
    assert not measures & {"queue_p50_ms", "goodput_requests_per_s"}


def test_a_round_that_only_one_side_finished_is_left_out():
    runs = [run_of("a", 0, 2.0), run_of("b", 0, 1.0), run_of("a", 1, 50.0)]
    assert all(c.ratio == pytest.approx(2) for c in ab.compare(runs, ("a", "b")))
    assert ab.compare(runs[:1], ("a", "b")) == ()
