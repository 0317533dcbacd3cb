import dataclasses

import pytest

from flexjax.bench.replay import run_replay


@pytest.fixture
def timed(items):
    return tuple(dataclasses.replace(item, offset_s=0.02 * i) for i, item in enumerate(items))


def test_requests_arrive_at_their_offsets(timed, fake_target):
    target = fake_target()
    run = run_replay(timed, target.submit)
    assert [t.arrival_s for t in run.timelines] == pytest.approx([item.offset_s for item in timed])
    assert [r.prompt_token_ids for r in target.seen] == [item.prompt_token_ids for item in timed]
    assert all(t.completed and t.first_token_s > t.arrival_s for t in run.timelines)
    assert run.loadgen == {} and run.faults == ()
    assert [(a.item, len(a.token_ids)) for a in run.answers] == [(i, x.n_expected) for i, x in enumerate(timed)]


def test_latency_counts_from_the_offset_even_when_the_target_is_busy(timed, fake_target):
    at_once = tuple(dataclasses.replace(item, offset_s=0.0) for item in timed)
    run = run_replay(at_once, fake_target(seconds_per_token=2e-3).submit)
    assert run.timelines[-1].first_token_s >= 2e-3 * sum(t.n_out for t in run.timelines[:-1])


def test_refusal_and_silence(timed, fake_target):
    run = run_replay(timed, fake_target(refuse=True).submit)
    assert run.faults == ("request q00002 was refused: the third is not welcome",)
    assert sum(t.completed for t in run.timelines) == len(timed) - 1
    run = run_replay(timed, fake_target(never_done=True).submit, stall_s=0.3)
    assert "nothing done for 0.3 s with 14 requests open" in run.faults[0]


def test_items_need_times(items, fake_target):
    with pytest.raises(ValueError, match=r"set workload\.trace"):
        run_replay(items, fake_target().submit)
