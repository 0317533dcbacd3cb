from flexjax.bench.events import Recorder
from flexjax.engine.request import TokenEvent


def test_a_request_s_life(items):
    told = []
    recorder = Recorder(lambda log: told.append(("first", log.id)), lambda log: told.append(("done", log.id)))
    request, log = recorder.open(items[1], issued=10.0)
    say = lambda kind, at, **fields: request.listener(TokenEvent(kind, request.id, at, **fields))
    say("scheduled", 10.5)
    say("token", 11.0, token_ids=(7,))
    say("token", 11.2, token_ids=(8, 9))
    assert recorder.done == 0
    say("done", 11.3, finish_reason="length")
    assert told == [("first", "q00000"), ("done", "q00000")] and recorder.done == 1
    (life,) = recorder.timelines(start=9.0, arrivals={log.id: 9.5})
    assert (life.arrival_s, life.scheduled_s, life.first_token_s) == (0.5, 1.5, 2.0)
    assert [round(t, 6) for t in life.token_times_s] == [2.0, 2.2, 2.2]
    assert (life.n_in, life.n_out, life.n_requested) == (2, 3, items[1].params.max_tokens)
    assert life.completed and log.token_ids == [7, 8, 9] and not recorder.faults


def test_an_event_after_the_end_and_a_second_schedule_are_faults(items):
    recorder = Recorder()
    request, _ = recorder.open(items[0], issued=0.0)
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
    failed, _ = recorder.open(items[0], issued=0.0)
    recorder.open(items[1], issued=0.0)
    failed.listener(TokenEvent("done", failed.id, 1.0, finish_reason="error", error="no page"))
    lives = recorder.timelines(0.0, {"q00000": 0.0, "q00001": 0.0})
    assert [(t.completed, t.error) for t in lives] == [(False, "no page"), (False, "never done")]
