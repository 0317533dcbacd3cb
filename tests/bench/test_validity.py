"""Each rule catches the fault that it is there for; LoadGen alone would let several of them pass."""

import dataclasses
import re

import mlperf_loadgen
import pytest

from flexjax.bench import validity
from flexjax.bench.loadgen import run_loadgen
from flexjax.bench.scenario import Limits, Scenario

PATIENT = Limits(600_000, 60_000)  # Where limits are not what is tested, no stall of the machine may miss them.
SERVER = Scenario("Server", queries=64, rate_per_s=500, percentile=0.9, limits=PATIENT, seed=3)
OFFLINE = Scenario("Offline", queries=16)
SINGLE = Scenario("SingleStream", queries=64, percentile=0.9)


def check(scenario, run, **options):
    given = dict(faults=run.faults, compiles=0, loadgen=run.loadgen) | options
    return validity.check(scenario, run.timelines, **given)


@pytest.fixture
def good(items, fake_target, tmp_path):
    run = run_loadgen(SERVER, items, fake_target().submit, tmp_path)
    assert check(SERVER, run).valid
    return run


def test_missing_first_tokens_pass_loadgen_and_not_us(items, fake_target, tmp_path, monkeypatch):
    monkeypatch.setattr(mlperf_loadgen, "FirstTokenComplete", lambda responses: None)
    run = run_loadgen(SERVER, items, fake_target(seconds_per_token=0.002).submit, tmp_path)
    assert run.loadgen["result_validity"] == "VALID"
    reasons = check(SERVER, run).reasons
    assert any("0.0 ms by LoadGen" in r for r in reasons)
    assert any("LoadGen counted 64 errors" in r for r in reasons)  # Its verdict does not mind them.


@pytest.mark.parametrize("scenario", [SERVER, SINGLE, OFFLINE], ids=lambda s: s.name)
def test_missing_token_counts_pass_loadgen_and_not_us(scenario, items, fake_target, tmp_path, monkeypatch):
    whole = mlperf_loadgen.QuerySampleResponse
    monkeypatch.setattr(mlperf_loadgen, "QuerySampleResponse", lambda *fields: whole(*fields[:3]))
    run = run_loadgen(scenario, items, fake_target().submit, tmp_path)
    assert run.loadgen["result_validity"] == "VALID"
    assert any("LoadGen was told of" in r and "handed over" in r for r in check(scenario, run).reasons)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("drop_token", "gave a wrong number of tokens; the first: q00000"),
        ("done_twice", "'done' after it was done"),
        ("fail", r"1 of 64 requests failed.*out of luck"),
        ("refuse", "refused: the third is not welcome"),
        ("no_tokens", "have no first token after their arrival"),
    ],
)
def test_a_broken_promise_is_named(fault, reason, items, fake_target, tmp_path):
    run = run_loadgen(SERVER, items, fake_target(**{fault: True}).submit, tmp_path)
    verdict = check(SERVER, run)
    assert not verdict.valid
    assert re.search(reason, "\n".join(verdict.reasons)), verdict.reasons


def test_one_token_too_many_towards_loadgen_is_seen(good):
    """The exactness that the count's recovery from LoadGen's rates claims."""
    first, *rest = good.timelines
    run = dataclasses.replace(good, timelines=(dataclasses.replace(first, n_out=first.n_out + 1), *rest))
    assert any("LoadGen was told of" in r for r in check(SERVER, run).reasons)


def test_compiles_faults_and_missing_requests(good):
    assert "2 programs were compiled" in check(SERVER, good, compiles=2).reasons[0]
    assert check(SERVER, good, faults=("clock went backwards",)).reasons == ("clock went backwards",)
    short = dataclasses.replace(good, timelines=good.timelines[:-1])
    assert "63 requests were made, 64 asked for" in check(SERVER, short).reasons


def test_times_out_of_order(good):
    first, *rest = good.timelines
    broken = dataclasses.replace(first, scheduled_s=first.first_token_s + 1)
    run = dataclasses.replace(good, timelines=(broken, *rest))
    assert any("times out of order" in r for r in check(SERVER, run).reasons)


def test_our_ttft_against_loadgens(good):
    late = tuple(
        dataclasses.replace(t, first_token_s=t.first_token_s + 1, token_times_s=(), done_s=t.done_s + 1)
        for t in good.timelines
    )
    assert any("p99 TTFT is" in r for r in check(SERVER, dataclasses.replace(good, timelines=late)).reasons)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("num_errors", 3, "LoadGen counted 3 errors"),
        ("num_errors", None, "LoadGen counted None errors: log incomplete"),
        ("result_min_duration_met", False, "minimum duration"),
        ("result_min_queries_met", False, "minimum query count"),
        ("result_validity", "INVALID", "LoadGen says INVALID"),
        ("result_token_throughput", float("nan"), "LoadGen was told of nan tokens"),
    ],
)
def test_loadgens_own_rules(good, key, value, reason):
    changed = dict(good.loadgen) | {key: value}
    assert any(reason in r for r in check(SERVER, good, loadgen=changed).reasons)


def test_too_few_queries_for_a_percentile_are_a_fault_where_there_are_no_limits(items, fake_target, tmp_path):
    run = run_loadgen(SINGLE, items, fake_target().submit, tmp_path)
    changed = dict(run.loadgen) | {"early_stopping_met": False}
    assert check(SINGLE, run).valid
    assert any("too few queries for p90" in r for r in check(SINGLE, run, loadgen=changed).reasons)


def test_limits_missed_are_a_result(items, fake_target, tmp_path):
    """LoadGen calls such a run INVALID; it is a true measurement of a side that is too slow."""
    tight = dataclasses.replace(SERVER, limits=Limits(ttft_ms=5, tpot_ms=60_000))
    run = run_loadgen(tight, items, fake_target(seconds_per_token=0.003).submit, tmp_path)
    assert run.loadgen["result_validity"] == "INVALID"
    assert validity.limits_missed(tight.name, run.loadgen) == "over its limits"
    assert check(tight, run).valid


def test_what_is_said_of_limits(good):
    assert validity.limits_missed("Server", good.loadgen) == ""
    few = dict(good.loadgen) | {"early_stopping_met": False}
    assert validity.limits_missed("Interactive", few) == "too few queries to judge its limits"
    assert validity.limits_missed("Offline", few) == validity.limits_missed("replay", {}) == ""


def test_replay_has_no_loadgen_to_ask(good):
    scenario = Scenario("replay", queries=64)
    assert check(scenario, dataclasses.replace(good, loadgen={})).valid
