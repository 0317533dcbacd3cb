import numpy as np
import pytest

from flexjax.bench.metrics import Distribution, is_good, summarise, tpot_ms
from flexjax.bench.result import RequestTimeline, StatsSample
from flexjax.bench.scenario import Limits


def timeline(arrival, scheduled, times, done=None, *, error="", n_in=10):
    return RequestTimeline(
        id="q",
        arrival_s=arrival,
        scheduled_s=scheduled,
        first_token_s=times[0] if times else None,
        done_s=done if done is not None else (times[-1] if times else None),
        n_in=n_in,
        n_out=len(times),
        n_requested=len(times),
        token_times_s=tuple(times),
        error=error,
    )


def test_percentiles_are_numpys_linear_ones():
    values = np.random.default_rng(0).exponential(size=459)
    found = Distribution.of(values)
    for name, q in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99), ("p99_9", 99.9)):
        assert getattr(found, name) == np.percentile(values, q, method="linear")
    assert found.mean == pytest.approx(values.mean())
    assert Distribution.of([3.0]).p99_9 == 3.0
    assert np.isnan(Distribution.of([]).p50)


def test_latencies_count_from_the_scheduled_arrival():
    # Arrives at 1.0, waits 2 s in a queue, first token 0.5 s later, then gaps of 0.1, 0 and 0.2 s.
    one = timeline(1.0, 3.0, [3.5, 3.6, 3.6, 3.8], done=3.81)
    m = summarise([one], [], None)
    assert m.queue_ms.p50 == pytest.approx(2000)
    assert m.ttft_ms.p50 == pytest.approx(2500)
    assert m.tpot_ms.p50 == pytest.approx(100)  # 0.3 s over three tokens after the first.
    assert m.itl_ms.p50 == pytest.approx(100)
    assert m.itl_ms.mean == pytest.approx(100)
    assert m.e2e_ms.p50 == pytest.approx(2810)


def test_rates_run_from_the_first_arrival_to_the_last_end():
    runs = [timeline(0.0, 0.0, [1.0, 2.0]), timeline(1.0, 2.0, [3.0, 3.5, 4.0])]
    m = summarise(runs, [], None)
    assert (m.completed, m.failed, m.input_tokens, m.output_tokens, m.duration_s) == (2, 0, 20, 5, 4.0)
    assert m.output_tokens_per_s == 5 / 4
    assert m.total_tokens_per_s == 25 / 4
    assert m.requests_per_s == 2 / 4
    assert np.isnan(m.goodput_requests_per_s)


def test_goodput_needs_both_limits_and_counts_failures_against_itself():
    limits = Limits(ttft_ms=500, tpot_ms=100)
    good = timeline(0.0, 0.0, [0.5, 0.6])
    late = timeline(0.0, 0.0, [0.51, 0.52])
    slow = timeline(0.0, 0.0, [0.1, 0.3])
    failed = timeline(0.0, 0.0, [0.1, 0.2], error="gone")
    assert [is_good(t, limits) for t in (good, late, slow)] == [True, False, False]
    m = summarise([good, late, slow, failed], [], limits)
    assert m.goodput_fraction == 1 / 4
    assert m.goodput_requests_per_s == pytest.approx(1 / 0.6)
    assert (m.completed, m.failed) == (3, 1)


def test_one_token_has_no_tpot_and_no_gap():
    m = summarise([timeline(0.0, 0.0, [0.5])], [], Limits(1000, 1))
    assert tpot_ms(timeline(0.0, 0.0, [0.5])) == 0.0
    assert np.isnan(m.tpot_ms.p50) and np.isnan(m.itl_ms.p50)
    assert m.goodput_fraction == 1.0


def test_a_target_that_tells_no_schedule_has_no_queue_time():
    assert np.isnan(summarise([timeline(0.0, None, [0.5, 0.6])], [], None).queue_ms.p50)


def test_nothing_at_all_is_nan_and_no_crash():
    m = summarise([], [], None)
    assert m.completed == 0 and np.isnan(m.output_tokens_per_s)


def test_samples_and_columns():
    samples = [StatsSample(0.0, 2, 0, 0.25), StatsSample(0.1, 4, 3, 0.75)]
    m = summarise([timeline(0.0, 0.0, [0.5, 0.6])], samples, None)
    assert (m.batch_occupancy.mean, m.cache_use.mean) == (3, 0.5)
    columns = m.to_columns()
    assert columns["metrics.ttft_p99_ms"] == m.ttft_ms.p99
    assert columns["metrics.e2e_p99_9_ms"] == m.e2e_ms.p99_9
    assert columns["metrics.cache_use_p95"] == m.cache_use.p95
    assert columns["metrics.output_tokens_per_s"] == m.output_tokens_per_s
    assert all(isinstance(v, int | float) for v in columns.values())
