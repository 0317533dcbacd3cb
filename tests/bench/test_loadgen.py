"""LoadGen itself runs in these tests, against a target of a thread and no model."""

import json
import re
import threading

import numpy as np
import pytest

from flexjax.bench import loadgen, validity
from flexjax.bench.loadgen import arrival_times, poisson_offsets, run_loadgen
from flexjax.bench.scenario import Limits, Scenario

LIMITS = Limits(ttft_ms=600_000, tpot_ms=60_000)  # Not what is tested here: no stall of the machine may miss them.


def check(scenario, run, **options):
    given = dict(faults=run.faults, compiles=0, loadgen=run.loadgen) | options
    return validity.check(scenario, run.timelines, **given)


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario("SingleStream", queries=64, percentile=0.9),
        Scenario("Offline", queries=40),
        Scenario("Server", queries=64, rate_per_s=500, percentile=0.9, limits=LIMITS, seed=11),
        Scenario("Interactive", queries=64, rate_per_s=500, percentile=0.9, limits=LIMITS, seed=12),
    ],
    ids=lambda s: s.name,
)
def test_an_honest_target_is_valid(scenario, items, fake_target, tmp_path):
    target = fake_target()
    run = run_loadgen(scenario, items, target.submit, tmp_path)
    assert check(scenario, run).reasons == ()
    assert len(run.timelines) == len(target.seen) == scenario.queries
    assert all(t.n_out == t.n_requested and t.completed for t in run.timelines)
    assert validity.token_count(scenario, scenario.queries, run.loadgen) == pytest.approx(
        sum(t.n_out for t in run.timelines), rel=validity.TOKEN_COUNT_TOLERANCE
    )
    assert (tmp_path / loadgen.DETAIL_LOG).is_file()
    # Every answer is told with the item that was asked, in the order of the requests.
    asked = [items[answer.item].prompt_token_ids for answer in run.answers]
    assert asked == [request.prompt_token_ids for request in target.seen]
    assert [len(answer.token_ids) for answer in run.answers] == [t.n_out for t in run.timelines]


def test_server_arrivals_are_those_in_loadgens_own_trace(items, fake_target, tmp_path):
    scenario = Scenario("Server", queries=100, rate_per_s=400, limits=LIMITS, seed=1_234_567_891)
    run = run_loadgen(scenario, items, fake_target().submit, tmp_path, trace=True)
    text = (tmp_path / "mlperf_log_trace.json").read_text()
    found = re.findall(r'"name":"Sample".*"ph":"b".*"ts":([\d.]+),"args":\{"sample_seq":(\d+)', text)
    theirs = np.array([float(at) for at, _ in sorted(found, key=lambda x: int(x[1]))]) / 1e6
    ours = np.array([t.arrival_s for t in run.timelines])
    # The trace keeps microseconds with three decimals; LoadGen rounds each gap to a nanosecond.
    np.testing.assert_allclose(ours - ours[0], theirs - theirs[0], rtol=0, atol=1e-6)


def test_equal_seeds_give_equal_prompts_and_arrivals(items, fake_target, tmp_path):
    scenario = Scenario("Server", queries=50, rate_per_s=500, limits=LIMITS, seed=5)
    a, b = fake_target("a"), fake_target("b", seconds_per_token=1e-3)
    runs = [run_loadgen(scenario, items, t.submit, tmp_path / t.name) for t in (a, b)]
    assert [r.prompt_token_ids for r in a.seen] == [r.prompt_token_ids for r in b.seen]
    arrivals = [[t.arrival_s for t in run.timelines] for run in runs]
    assert arrivals[0] == pytest.approx(arrivals[1], abs=1e-9)
    other = poisson_offsets(500, 6, 50)
    assert not np.allclose(other, poisson_offsets(500, 5, 50))


def test_poisson_offsets_have_exponential_gaps():
    offsets = poisson_offsets(rate_per_s=20.0, seed=3, count=20_001)
    gaps = np.diff(offsets)
    assert offsets[0] == 0.0
    # Mean and standard deviation of an exponential are both 1/rate; 5 standard errors of 20,000 draws.
    assert gaps.mean() == pytest.approx(1 / 20, rel=5 / np.sqrt(20_000))
    assert gaps.std() == pytest.approx(1 / 20, rel=10 / np.sqrt(20_000))


def test_the_origin_is_the_earliest_that_any_issue_allows():
    scenario = Scenario("Server", queries=3, rate_per_s=10, limits=LIMITS, seed=2)
    offsets = poisson_offsets(10, 2, 3)
    issued = 100.0 + offsets + np.array([0.5, 0.002, 0.3])  # Lags: the second was issued almost in time.
    assert arrival_times(scenario, list(issued)) == pytest.approx(list(100.002 + offsets))
    assert arrival_times(Scenario("Offline", 3), [1.0, 1.0, 2.0]) == [1.0, 1.0, 2.0]


def test_latency_includes_the_queue_that_a_slow_target_builds(items, fake_target, tmp_path):
    # 5 ms a token and one request at a time: at 200/s nearly every request waits for those before it.
    scenario = Scenario("Server", queries=20, rate_per_s=200, limits=LIMITS)
    run = run_loadgen(scenario, items, fake_target(seconds_per_token=5e-3).submit, tmp_path)
    last = run.timelines[-1]
    work_before_s = sum(5e-3 * t.n_out for t in run.timelines[:-1])
    assert last.first_token_s - last.arrival_s > work_before_s - last.arrival_s
    assert last.scheduled_s > last.arrival_s + 0.1


def test_a_refused_request_does_not_end_the_process(items, fake_target, tmp_path):
    scenario = Scenario("Offline", queries=8)
    run = run_loadgen(scenario, items, fake_target(refuse=True).submit, tmp_path)
    assert run.faults == ("request q00002 was refused: the third is not welcome",)
    assert not check(scenario, run).valid
    assert [t.completed for t in run.timelines] == [True, True, False] + [True] * 5


def test_a_silent_target_is_given_up(items, fake_target, tmp_path):
    scenario = Scenario("Offline", queries=8)
    run = run_loadgen(scenario, items, fake_target(never_done=True).submit, tmp_path, stall_s=2)
    assert "no event for 2 s with 6 requests open" in run.faults[0]
    assert [t.error for t in run.timelines[2:]] == ["never done"] * 6


def test_an_interrupt_ends_loadgen_too(items, fake_target, tmp_path):
    target = fake_target(seconds_per_token=0.01)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_loadgen(Scenario("Offline", queries=50), items, target.submit, tmp_path, progress=interrupt)
    assert not [t for t in threading.enumerate() if t.name == "loadgen"]
    # LoadGen is free for the next test.
    after = run_loadgen(Scenario("Offline", queries=4), items, fake_target().submit, tmp_path)
    assert all(t.completed for t in after.timelines)


def test_progress_reaches_the_total(items, fake_target, tmp_path):
    seen = []
    run_loadgen(Scenario("Offline", 32), items, fake_target().submit, tmp_path, progress=lambda *x: seen.append(x))
    assert seen[-1] == (32, 32)


def test_detail_log_keeps_values_and_collects_errors(tmp_path):
    line = lambda key, value, error: (
        ":::MLLOG " + json.dumps({"key": key, "value": value, "metadata": {"is_error": error, "is_warning": False}})
    )
    log = tmp_path / "detail.txt"
    log.write_text("\n".join([line("result_validity", "VALID", False), line("error_runtime", "bad", True), "noise"]))
    found = loadgen.read_detail_log(log)
    assert found["result_validity"] == "VALID" and found["error_messages"] == ["bad"]


def test_the_issue_callback_does_not_wait_for_answers(items, fake_target, tmp_path):
    """LoadGen issues from one thread: a callback that waited for the target would delay the arrivals."""
    target, requests = fake_target(), []

    def submit(request):
        requests.append(request)
        if len(requests) == 16:  # Nothing is answered before all are in.
            for each in requests:
                target.submit(each)

    run = run_loadgen(Scenario("Offline", 16), items, submit, tmp_path, stall_s=5)
    assert run.faults == () and len(run.timelines) == 16
