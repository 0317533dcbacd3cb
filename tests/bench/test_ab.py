import dataclasses
import math

import pytest

from flexjax.bench import ab
from flexjax.bench.metrics import summarise
from flexjax.bench.result import RequestTimeline, SideRun, StartUp, Verdict
from flexjax.bench.scenario import Limits, Scenario
from flexjax.bench.validity import OVER_LIMITS, limits_missed

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
    assert run.kind == "Offline" and len(run.answers) == 16 and run.energy is not None


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


def test_rounds_run_forwards_and_backwards_and_share_their_seeds(side):
    sides = [side(name) for name in "abc"]
    everyone = dict.fromkeys("abc", OFFLINE)
    stream = dict.fromkeys("ac", Scenario("SingleStream", 64, percentile=0.9, seed=5))
    loads = [ab.Load((), everyone), ab.Load((), stream)]
    order = [(r, x.name, s.target.name, x.seed) for r, s, x, _ in ab.alternate(sides, loads, rounds=3)]
    expected = []
    for r, turn in enumerate((1, -1, 1)):
        expected += [(r, "Offline", name, r) for name in "abc"[::turn]]
        expected += [(r, "SingleStream", name, 5 + r) for name in "ac"[::turn]]
    assert order == expected


def run_of(side, round_index, seconds, kind="SingleStream", n_out=10, scheduled=None, count=1, title="", loadgen=None):
    times = tuple(seconds * (i + 1) / n_out for i in range(n_out))
    one = RequestTimeline("q", 0.0, scheduled, times[0], seconds, 5, n_out, n_out, times)
    return SideRun(
        side=side,
        scenario=title or kind,
        kind=kind,
        round=round_index,
        metrics=summarise([one] * count, [], None),
        verdict=Verdict(True),
        timelines=(one,) * count,
        answers=(),
        samples=(),
        described={},
        kernels={},
        startup=StartUp(0, 0),
        peak_memory_bytes=None,
        energy=None,
        loadgen=loadgen or {},
        started_at="2026-01-01T00:00:00+00:00",
    )


def test_ratios_are_taken_within_a_round_and_above_one_the_side_is_better():
    # B is 2, 4 and 3 times faster; the machine slowed down by ten in the second round, which cancels out.
    runs = [run_of("a", 0, 2.0, count=7), run_of("a", 1, 20.0, count=7), run_of("a", 2, 3.0, count=7)]
    runs += [run_of("b", 0, 1.0, count=7), run_of("b", 1, 5.0, count=7), run_of("b", 2, 1.0, count=7)]
    runs = [dataclasses.replace(run, kind="Server", scenario="Server") for run in runs]
    found = {c.measure: c for c in ab.compare(runs, ("a", "b"))}
    for measure, better in (("output_tokens_per_s", "higher"), ("ttft_p50_ms", "lower"), ("e2e_p50_ms", "lower")):
        c = found[measure]
        assert (c.side, c.better, c.scenario, c.pairs) == ("b", better, "Server", 3)
        assert c.ratio == pytest.approx(24 ** (1 / 3))
        # ln 2, ln 4, ln 3 have a standard deviation of 0.3482; t of 2 degrees of freedom is 4.303.
        half = 4.3027 * 0.34824 / math.sqrt(3)
        assert c.interval.low == pytest.approx(c.ratio * math.exp(-half), rel=1e-3)
        assert c.interval.high == pytest.approx(c.ratio * math.exp(half), rel=1e-3)
    assert found["output_tokens_per_s"].baseline_value == pytest.approx(70 / 3)
    assert found["e2e_p50_ms"].value == pytest.approx(1000)


def test_swapped_sides_turn_every_ratio_over():
    runs = [run_of(s, r, (1 + r) * (1 if s == "a" else 1.3 + r / 10), count=100) for s in "ab" for r in range(4)]
    there, back = ab.compare(runs, ("a", "b")), ab.compare(runs, ("b", "a"))
    assert len(there) == len(back) > 8
    for x, y in zip(there, back, strict=True):
        assert (x.measure, x.scenario) == (y.measure, y.scenario)
        assert x.ratio * y.ratio == pytest.approx(1) and x.interval.low * y.interval.high == pytest.approx(1)


def test_every_side_is_compared_with_the_first():
    runs = [run_of(side, 0, seconds) for side, seconds in (("a", 4.0), ("b", 2.0), ("c", 1.0))]
    ratios = {c.side: c.ratio for c in ab.compare(runs, ("a", "b", "c")) if c.measure == "output_tokens_per_s"}
    assert ratios == {"b": pytest.approx(2), "c": pytest.approx(4)}


@pytest.mark.parametrize(
    ("kind", "count", "shown"),
    [
        ("SingleStream", 64, {"p50", "p90"}),
        ("SingleStream", 63, {"p50"}),
        ("SingleStream", 662, {"p50", "p90", "p99"}),
        ("Server", 458, {"p50", "p90"}),
        ("Server", 459, {"p50", "p90", "p99"}),
        ("Server", 4603, {"p50", "p90", "p99", "p99_9"}),
    ],
)
def test_a_percentile_needs_loadgens_count(kind, count, shown):
    runs = [run_of("a", 0, 2.0, kind, count=count), run_of("b", 0, 1.0, kind, count=count)]
    measures = {c.measure for c in ab.compare(runs, ("a", "b"))}
    assert {m.removeprefix("ttft_").removesuffix("_ms") for m in measures if m.startswith("ttft_")} == shown


def test_latencies_that_grow_with_the_run_are_not_compared():
    rates = {"output_tokens_per_s", "total_tokens_per_s", "requests_per_s"}
    offline = [run_of(side, 0, 1.0, "Offline", count=500) for side in "ab"]
    assert {c.measure for c in ab.compare(offline, ("a", "b"))} == rates
    over = {"result_perf_constraints_met": False}
    assert limits_missed("Server", over) == OVER_LIMITS
    runs = [run_of(side, r, 1.0, "Server", count=500) for side in "ab" for r in range(3)]
    missed_twice = [dataclasses.replace(run, loadgen=over) if run.side == "a" and run.round else run for run in runs]
    missed_once = [
        dataclasses.replace(run, loadgen=over) if run.side == "a" and run.round == 1 else run for run in runs
    ]
    assert {c.measure for c in ab.compare(missed_twice, ("a", "b"))} == rates
    assert "ttft_p99_ms" in {c.measure for c in ab.compare(missed_once, ("a", "b"))}


def test_runs_outside_the_rounds_are_not_compared():
    runs = [run_of("a", 0, 2.0), run_of("b", 0, 1.0), run_of("a", -1, 9.0), run_of("b", -1, 1.0)]
    assert {c.pairs for c in ab.compare(runs, ("a", "b"))} == {1}
    assert all(c.ratio == pytest.approx(2) and c.interval is None for c in ab.compare(runs, ("a", "b")))


def test_a_measure_that_one_side_lacks_is_not_compared():
    runs = [run_of("a", 0, 2.0, scheduled=0.5, count=10), run_of("b", 0, 1.0, count=10)]
    runs = [dataclasses.replace(run, kind="Server", scenario="Server") for run in runs]
    assert math.isnan(runs[1].metrics.queue_ms.p50)
    measures = {c.measure for c in ab.compare(runs, ("a", "b"))}
    assert "ttft_p50_ms" in measures
    assert not measures & {"queue_p50_ms", "goodput_requests_per_s"}


def test_a_round_that_only_one_side_finished_is_left_out():
    runs = [run_of("a", 0, 2.0), run_of("b", 0, 1.0), run_of("a", 1, 50.0)]
    assert all(c.ratio == pytest.approx(2) for c in ab.compare(runs, ("a", "b")))
    assert ab.compare(runs[:1], ("a", "b")) == ()
