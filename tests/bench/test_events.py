import dataclasses

from flexjax.bench.events import Recorder
from flexjax.bench.result import LoadedAnswer
from flexjax.engine.request import TokenEvent


def test_a_request_s_life(items):
    told = []
    recorder = Recorder(lambda log: told.append(("first", log.id)), lambda log: told.append(("done", log.id)))
    request, log = recorder.open(1, items[1], issued=10.0)
    say = lambda kind, at, **fields: request.listener(TokenEvent(kind, request.id, at, **fields))
    say("scheduled", 10.5)
    say("token", 11.0, token_ids=(7,), text="a ")
    say("token", 11.2, token_ids=(8, 9), text="b")
    assert recorder.done == 0 and recorder.answers() == ()
    say("done", 11.3, finish_reason="length")
    assert told == [("first", "q00000"), ("done", "q00000")] and recorder.done == 1
    (life,) = recorder.timelines(start=9.0, arrivals={log.id: 9.5})
    assert (life.arrival_s, life.scheduled_s, life.first_token_s) == (0.5, 1.5, 2.0)
    assert [round(t, 6) for t in life.token_times_s] == [2.0, 2.2, 2.2]
    assert (life.n_in, life.n_out, life.n_requested) == (2, 3, items[1].params.max_tokens)
    assert life.completed and log.token_ids == [7, 8, 9] and not recorder.faults
    assert recorder.answers() == (LoadedAnswer(1, (7, 8, 9), "a b"),)


def test_an_event_after_the_end_and_a_second_schedule_are_faults(items):
    recorder = Recorder()
    request, _ = recorder.open(0, items[0], issued=0.0)
    say = lambda kind, **fields: request.listener(TokenEvent(kind, request.id, 1.0, **fields))
    say("scheduled")
    say("scheduled")
    say("done", finish_reason="length")
    say("token", token_ids=(1,))
    say("done", finish_reason="length")
    assert recorder.done == 1
    assert recorder.faults == (
        "request q00000: scheduled twice",
        "request q00000: 'token' after it was done",
        "request q00000: 'done' after it was done",
    )


def test_errors_and_silence_are_told_apart(items):
    recorder = Recorder()
    failed, _ = recorder.open(0, items[0], issued=0.0)
    recorder.open(1, items[1], issued=0.0)
    failed.listener(TokenEvent("done", failed.id, 1.0, finish_reason="error", error="no page"))
    lives = recorder.timelines(0.0, {"q00000": 0.0, "q00001": 0.0})
    assert [(t.completed, t.error) for t in lives] == [(False, "no page"), (False, "never done")]
    assert recorder.answers() == ()


def test_forced_tokens_are_passed_on_expected_and_no_answer_of_the_side_s_own(items):
    recorder = Recorder()
    item = dataclasses.replace(items[0], forced=(5, 6, 0))
    for index, tokens in enumerate([(5, 6, 0), (5, 7, 0), (5, 6)]):
        request, _ = recorder.open(index, item, issued=0.0)
        assert request.forced == item.forced
        request.listener(TokenEvent("token", request.id, 1.0, token_ids=tokens))
        request.listener(TokenEvent("done", request.id, 1.0, finish_reason="stop"))
    lives = recorder.timelines(0.0, {f"q0000{i}": 0.0 for i in range(3)})
    assert [(t.n_out, t.n_requested) for t in lives] == [(3, 3), (3, 3), (2, 3)]
    assert recorder.faults == tuple(f"request q0000{i}: other tokens than those forced on it" for i in (1, 2))
    assert recorder.answers() == ()
