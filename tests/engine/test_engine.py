"""What the engine promises: the same tokens in any company, nothing leaked, nobody harmed by another."""

import dataclasses
import threading
from concurrent.futures import Future

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexjax.engine import Engine, EngineConfig, QueueFull, Request, SamplingParams, TokenEvent
from flexjax.engine.device.score import Scoring

CONFIG = EngineConfig(
    dtype="float32", max_num_seqs=4, max_num_batched_tokens=16, page_size=4, num_pages=60, decode_steps=3
)


@pytest.fixture(scope="module")
def engine(tiny_model) -> Engine:
    return Engine(tiny_model, None, CONFIG)


@pytest.fixture(scope="module")
def cramped(tiny_model) -> Engine:
    """The same with 15 usable pages of 4 tokens: one long request fills it."""
    return Engine(tiny_model, None, EngineConfig(**{**vars(CONFIG), "num_pages": 16, "max_model_len": 60}))


@pytest.fixture
def tiny_engine(tiny_model):
    """Makes engines that a test may break, with two sequences a step."""
    small = {**vars(CONFIG), "max_num_seqs": 2, "max_num_batched_tokens": 8}
    return lambda **fields: Engine(tiny_model, None, EngineConfig(**small | fields))


class Log:
    """A listener that keeps everything."""

    def __init__(self):
        self.events: dict[str, list[TokenEvent]] = {}

    def __call__(self, event: TokenEvent) -> None:
        self.events.setdefault(event.request_id, []).append(event)

    def tokens(self, request_id: str, index: int = 0) -> list[int]:
        return [t for e in self.events[request_id] if e.index == index for t in e.token_ids]

    def logprobs(self, request_id: str) -> list[dict[int, float]]:
        return [one for e in self.events[request_id] for one in e.logprobs]

    def reason(self, request_id: str):
        return self.events[request_id][-1].finish_reason


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 96, length).tolist())


def run(engine: Engine, requests: dict[str, tuple[tuple[int, ...], SamplingParams]], cancel=()) -> Log:
    log = Log()
    for name, (tokens, params) in requests.items():
        engine.submit(Request(name, tokens, params, listener=log))
    turn = 0
    while engine.step():
        for name, at in cancel:
            if at == turn:
                engine.cancel(name)
        turn += 1
    assert engine.pool.num_used == 0 and engine.num_open == 0
    return log


def greedy(max_tokens: int | None, **fields) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, **fields)


REQUESTS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 30), st.integers(1, 24), st.sampled_from([0.0, 0.0, 1.0])),
    min_size=1,
    max_size=7,
)


def params_of(max_tokens: int, temperature: float) -> SamplingParams:
    rules = dict(top_k=20, presence_penalty=0.5, repetition_penalty=1.1) if temperature else {}
    return SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=11, logprobs=3, **rules)


@pytest.mark.parametrize("which", ["roomy", "cramped"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=REQUESTS)
def test_same_bits_alone_and_in_company(engine, cramped, which, sizes):
    """Tokens and log-probabilities, greedy and seeded, whatever runs beside them and whoever is sent back."""
    alone, together = engine, engine if which == "roomy" else cramped
    requests = {f"r{i}": (prompt(seed, n), params_of(out, temp)) for i, (seed, n, out, temp) in enumerate(sizes)}
    log = run(together, requests)
    for name, one in requests.items():
        expected = run(alone, {name: one})
        assert log.tokens(name) == expected.tokens(name)
        assert log.logprobs(name) == expected.logprobs(name)
        assert log.reason(name) == "length"


def test_pool_pressure_really_preempts(cramped):
    cramped.stats.reset()
    run(cramped, {f"r{i}": (prompt(i, 20), greedy(30)) for i in range(3)})
    assert cramped.stats.preemptions > 0


def test_steps_that_only_repeat_a_row_are_not_counted_again(tiny_model):
    """In a tight pool one sequence of a dispatch makes one token while its neighbours make four."""
    params = SamplingParams(temperature=0, max_tokens=30, frequency_penalty=2.0, repetition_penalty=0.5)
    tight = {**vars(CONFIG), "num_pages": 17, "decode_steps": 4, "max_model_len": 60}
    engine = Engine(tiny_model, None, EngineConfig(**tight))
    uneven, schedule = [], engine.scheduler.schedule

    def watched():
        plan = schedule()
        if plan is not None:
            uneven.extend(c for c in plan.chunks if c.samples < plan.num_steps and c.sequence.remaining > 0)
        return plan

    engine.scheduler.schedule = watched
    requests = {f"r{i}": (prompt(20 + i, 4 + 3 * i), params) for i in range(8)}
    together = run(engine, requests)
    assert uneven, "the pool was not tight enough to provoke it"
    for name, one in requests.items():
        assert together.tokens(name) == run(engine, {name: one}).tokens(name)


def test_events_come_in_order_and_once(engine):
    log = run(engine, {"a": (prompt(0, 9), greedy(7)), "b": (prompt(1, 40), greedy(1))})
    for name, count in (("a", 7), ("b", 1)):
        kinds = [e.kind for e in log.events[name]]
        assert kinds[0] == "scheduled" and kinds[-1] == "done" and set(kinds[1:-1]) == {"token"}
        assert len(log.tokens(name)) == count
        times = [e.time for e in log.events[name]]
        assert times == sorted(times)


def test_greedy_follows_the_models_own_argmax(engine, tiny_model):
    tokens = prompt(3, 10)
    made = run(engine, {"a": (tokens, greedy(30))}).tokens("a")
    hidden, _ = tiny_model.dense(np.asarray([[*tokens, *made]], np.int32))
    assert np.argmax(tiny_model.logits(hidden)[0, 9:-1], axis=-1).tolist() == made


def test_end_of_text_ends_it_even_in_the_middle_of_a_dispatch(engine):
    whole = run(engine, {"a": (prompt(4, 6), greedy(20))}).tokens("a")
    stop = whole[9]
    first = whole.index(stop)
    log = run(engine, {"a": (prompt(4, 6), greedy(20, stop_token_ids=(stop,)))})
    assert log.tokens("a") == whole[: first + 1]
    assert log.reason("a") == "stop"


def test_min_tokens_holds_the_end_back(engine):
    stop = run(engine, {"a": (prompt(4, 6), greedy(1))}).tokens("a")[0]
    log = run(engine, {"a": (prompt(4, 6), greedy(12, stop_token_ids=(stop,), min_tokens=5))})
    assert stop not in log.tokens("a")[:5]


def test_several_continuations_differ_and_repeat(engine):
    params = SamplingParams(n=3, temperature=1.5, max_tokens=12, seed=5)
    first, again = (run(engine, {"a": (prompt(5, 8), params)}) for _ in range(2))
    texts = [first.tokens("a", i) for i in range(3)]
    assert len({tuple(t) for t in texts}) == 3
    assert texts == [again.tokens("a", i) for i in range(3)]


def test_logprobs_belong_to_the_tokens(engine, tiny_model):
    tokens = prompt(6, 8)
    log = run(engine, {"a": (tokens, greedy(6, logprobs=4)), "b": (prompt(7, 8), greedy(6))})
    got = log.logprobs("a")
    hidden, _ = tiny_model.dense(np.asarray([[*tokens, *log.tokens("a")]], np.int32))
    expected = np.asarray(jax.nn.log_softmax(tiny_model.logits(hidden)[0]))
    assert len(got) == 6
    for i, one in enumerate(got):
        row = expected[len(tokens) - 1 + i]
        assert next(iter(one)) == log.tokens("a")[i] and len(one) == 4  # Greedy: the chosen one is among the top 4.
        np.testing.assert_allclose(list(one.values()), row[list(one)], atol=2e-5)
    assert not log.logprobs("b")


@pytest.mark.parametrize("at", [0, 1, 2, 5])
def test_cancel_gives_everything_back_and_leaves_the_others(engine, at):
    others = {"b": (prompt(8, 20), greedy(15)), "c": (prompt(9, 5), greedy(15))}
    log = run(engine, {"a": (prompt(7, 40), greedy(40)), **others}, cancel=[("a", at)])
    assert log.reason("a") == "cancelled" and len(log.tokens("a")) < 40
    for name, one in others.items():
        assert log.tokens(name) == run(engine, {name: one}).tokens(name)


def test_a_listener_that_raises_loses_its_own_request_only(engine, caplog):
    def broken(event):
        raise KeyError("broken listener")

    log = Log()
    engine.submit(Request("bad", prompt(0, 5), SamplingParams(n=2, max_tokens=10), listener=broken))
    engine.submit(Request("good", prompt(1, 5), greedy(10), listener=log))
    while engine.step():
        pass
    assert len(log.tokens("good")) == 10 and engine.num_open == 0 and engine.pool.num_used == 0
    assert "'bad' raised" in caplog.text


def test_a_listener_that_raises_at_the_end_of_several_continuations(engine, caplog):
    def broken(event):
        if event.kind == "done":
            raise KeyError("closed")

    log = Log()
    engine.submit(Request("bad", prompt(0, 5), SamplingParams(n=2, max_tokens=90), listener=broken))
    engine.submit(Request("good", prompt(1, 5), greedy(10), listener=log))
    engine.step()
    engine.cancel("bad")
    while engine.step():
        pass
    assert len(log.tokens("good")) == 10 and engine.num_open == 0 and engine.pool.num_used == 0


def test_a_late_cancel_does_not_reach_the_next_bearer_of_the_id(engine):
    log = Log()
    engine.cancel("again")
    engine.submit(Request("again", prompt(0, 5), greedy(6), listener=log))
    while engine.step():
        pass
    assert log.reason("again") == "length"


class Panic(BaseException):
    """As a panic of the tokenizers library, which is written in Rust: no Exception."""


@pytest.mark.parametrize("raised", [Panic("byte index"), SystemExit(2), RuntimeError("no")])
def test_tokens_that_cannot_be_made_text_end_their_own_request_only(engine, raised, caplog):
    others = {"b": (prompt(8, 20), greedy(15)), "c": (prompt(9, 5), greedy(15))}
    log = Log()
    engine.submit(Request("bad", prompt(0, 5), greedy(40, n=2), listener=log))
    for name, (tokens, params) in others.items():
        engine.submit(Request(name, tokens, params, listener=log))
    stream = engine._live["bad"][1].stream
    pushed = []

    def push(token, **_):
        pushed.append(token)
        if len(pushed) == 4:
            raise raised
        return ""

    stream.push = push
    while engine.step():
        pass
    ends = [e for e in log.events["bad"] if e.kind == "done"]
    assert [(e.index, e.finish_reason, e.fatal) for e in ends] == [(0, "error", False), (1, "error", False)]
    assert all(
        f"'bad' could not be made text: {type(raised).__name__}" in e.error.replace(f"{__name__}.", "") for e in ends
    )
    assert engine.num_open == 0 and engine.pool.num_used == 0 and engine.failure is None
    for name, one in others.items():
        assert log.tokens(name) == run(engine, {name: one}).tokens(name)


def test_a_listener_that_raises_is_told_the_end_of_its_request(engine, caplog):
    ends: list[TokenEvent] = []

    def broken(event):
        if event.kind == "done":
            ends.append(event)
        raise Panic("listener")

    log = Log()
    engine.submit(Request("bad", prompt(0, 5), greedy(60, n=2), listener=broken))
    engine.submit(Request("good", prompt(1, 5), greedy(10), listener=log))
    while engine.step():
        pass
    assert [e.finish_reason for e in ends] == ["error"] * 2 and "Panic: listener" in ends[0].error
    assert log.reason("good") == "length" and engine.num_open == 0 and engine.pool.num_used == 0


def test_an_interrupt_in_a_listener_goes_on_after_the_turn_of_the_main_thread(engine, caplog):
    log = Log()

    def interrupted(event):
        raise KeyboardInterrupt

    engine.submit(Request("bad", prompt(0, 5), greedy(9), listener=interrupted))
    engine.submit(Request("good", prompt(1, 5), greedy(10), listener=log))
    with pytest.raises(KeyboardInterrupt):
        while engine.step():
            pass
    while engine.step():
        pass
    assert log.reason("good") == "length" and engine.num_open == 0 and engine.failure is None


@pytest.mark.parametrize(
    ("where", "threaded"),
    [("runner.run", True), ("scheduler.schedule", False), ("scheduler.retire", True), ("scheduler.add", False)],
)
def test_whatever_breaks_a_turn_ends_everyone_and_is_named(tiny_engine, monkeypatch, caplog, where, threaded):
    """A BaseException, with two requests open and one text to score; the pages are not asked for."""
    engine, log, told = tiny_engine(), Log(), threading.Semaphore(0)

    def listen(event):
        log(event)
        if event.kind == "done":
            told.release()

    def fail(*args):
        raise Panic("out of memory")

    owner, name = where.split(".")
    engine.submit(Request("a", prompt(0, 5), greedy(90, n=2), listener=listen))
    if where != "scheduler.add":
        engine.step()
    result = Future()
    engine.submit(Request("b", prompt(1, 5), greedy(4), listener=listen))
    monkeypatch.setattr(getattr(engine, owner), name, fail)
    engine.enqueue(Scoring((1, 2, 3), 4, result))
    if threaded:
        engine.start()
    else:
        with pytest.raises(Panic, match="out of memory"):
            while engine.step():
                pass
    for _ in range(3):
        assert told.acquire(timeout=30)
    for name in "ab":
        ends = [e for e in log.events[name] if e.kind == "done"]
        assert len(ends) == (2 if name == "a" else 1)
        assert all(e.finish_reason == "error" and e.fatal and "Panic: out of memory" in e.error for e in ends)
    if where == "scheduler.add":  # Before the text's turn came.
        assert isinstance(result.exception(30).__cause__, Panic)
    with pytest.raises(RuntimeError, match="has failed and takes no requests: .*out of memory") as refused:
        engine.submit(Request("c", prompt(0, 5), greedy(4)))
    assert isinstance(refused.value.__cause__, Panic) and engine.num_open == 0
    with pytest.raises(RuntimeError, match="has failed"):
        engine.score((1, 2, 3), 4)
    engine.cancel("a")
    engine.start()
    assert not engine.step()
    engine.stop()
    engine.stop()


def test_a_text_that_cannot_be_scored_between_turns_fails_them_all(tiny_engine, monkeypatch, caplog):
    engine, log = tiny_engine(), Log()
    engine.submit(Request("a", prompt(0, 5), greedy(90), listener=log))

    def fail(tokens, rows_per_step):
        raise Panic("out of memory")

    monkeypatch.setattr(engine, "_scorers", fail)
    results = [Future(), Future()]
    for result in results:
        engine.enqueue(Scoring((1, 2, 3), 4, result))
    with pytest.raises(Panic):
        engine.step()
    assert all(isinstance(result.exception(0).__cause__, Panic) for result in results)
    assert log.reason("a") == "error"


def test_the_queue_has_a_bound_and_room_comes_back(tiny_engine):
    engine, log = tiny_engine(max_waiting=3), Log()  # Two may run.
    engine.submit(Request("a", prompt(0, 5), greedy(3, n=3), listener=log))
    engine.submit(Request("b", prompt(1, 5), greedy(3), listener=log))
    with pytest.raises(QueueFull, match=r"max_num_seqs \+ max_waiting = 5 sequences .* 4 are, and this request has 2"):
        engine.submit(Request("c", prompt(2, 5), greedy(3, n=2), listener=log))
    engine.submit(Request("d", prompt(2, 5), greedy(3), listener=log))
    while engine.step():
        pass
    assert {name: log.reason(name) for name in log.events} == dict.fromkeys("abd", "length")
    engine.submit(Request("c", prompt(2, 5), greedy(3, n=5), listener=log))
    while engine.step():
        pass
    assert log.reason("c") == "length"
    with pytest.raises(ValueError, match="max_waiting is 5, this one has n=6"):
        engine.submit(Request("e", prompt(2, 5), greedy(3, n=6)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"priority": "high"}, "whole number, lower for sooner; got 'high'"),
        ({"priority": float("nan")}, "got nan"),
        ({"prompt_token_ids": (1, 2.5)}, r"as whole numbers; the request has \[2.5\]"),
    ],
)
def test_what_the_thread_could_not_order_or_embed_is_refused_at_the_door(engine, fields, message):
    request = Request("bad", prompt(0, 5), greedy(2))
    with pytest.raises(ValueError, match=message):
        engine.submit(dataclasses.replace(request, **fields))
    assert engine.num_open == 0


def test_a_request_cancelled_twice_is_told_once(engine):
    log = Log()
    engine.submit(Request("a", prompt(0, 5), greedy(60), listener=log))
    engine.step()
    engine.cancel("a")
    engine.cancel("a")
    while engine.step():
        pass
    engine.cancel("a")
    assert [e.kind for e in log.events["a"]].count("done") == 1 and log.reason("a") == "cancelled"
    assert engine.num_open == 0 and engine.pool.num_used == 0


def test_a_drawn_seed_is_told_and_makes_the_same_again(engine):
    drawn = run(engine, {"a": (prompt(5, 8), SamplingParams(n=3, temperature=1.5, max_tokens=12))})
    ends = [e for e in drawn.events["a"] if e.kind == "done"]
    seeds = {e.index: e.seed for e in ends}
    assert len(set(seeds.values())) == 3
    for index, seed in seeds.items():
        again = run(engine, {"a": (prompt(5, 8), SamplingParams(seed=seed, temperature=1.5, max_tokens=12))})
        assert again.tokens("a") == drawn.tokens("a", index)
    assert run(engine, {"a": (prompt(5, 8), greedy(2))}).events["a"][-1].seed is None


@pytest.mark.parametrize(
    ("tokens", "params", "message"),
    [
        ((), greedy(1), "at least one token"),
        ((5, 96), greedy(1), r"\[0, 96\).*\[96\]"),
        (prompt(0, 60), greedy(1), "leave room for one token in the context of 60; this one has 60"),
        ((1,), greedy(1, stop=("x",)), "need a tokenizer"),
    ],
)
def test_bad_requests_are_refused_and_the_others_go_on(cramped, tokens, params, message):
    log = Log()
    cramped.submit(Request("good", prompt(1, 5), greedy(10), listener=log))
    cramped.step()
    with pytest.raises(ValueError, match=message):
        cramped.submit(Request("bad", tokens, params))
    while cramped.step():
        pass
    assert len(log.tokens("good")) == 10


def test_a_request_larger_than_the_pool_is_refused(tiny_model):
    engine = Engine(tiny_model, None, EngineConfig(**{**vars(CONFIG), "num_pages": 6, "max_num_seqs": 1}))
    with pytest.raises(ValueError, match=r"28 tokens need 7 pages of 4, the pool has 5.*num_pages"):
        engine.submit(Request("r", prompt(0, 20), greedy(8)))


def test_without_max_tokens_a_request_goes_as_far_as_the_pool(tiny_model):
    """Five pages of four tokens; the context would go on."""
    engine = Engine(tiny_model, None, EngineConfig(**{**vars(CONFIG), "num_pages": 6, "max_num_seqs": 1}))
    log = run(engine, {"r": (prompt(0, 9), greedy(None))})
    assert len(log.tokens("r")) == 11
    assert (log.reason("r"), log.events["r"][-1].limit) == ("length", "num_pages")
    with pytest.raises(ValueError, match="pages of 4, the pool has 5"):
        engine.submit(Request("full", prompt(0, 20), greedy(None)))


def test_a_taken_id_is_refused(engine):
    engine.submit(Request("same", prompt(0, 3), greedy(2)))
    with pytest.raises(ValueError, match="'same' is taken"):
        engine.submit(Request("same", prompt(0, 3), greedy(2)))
    while engine.step():
        pass


def test_context_longer_than_the_model_is_refused(tiny_model):
    with pytest.raises(ValueError, match="own context of 128; got 129"):
        Engine(tiny_model, None, EngineConfig(**{**vars(CONFIG), "max_model_len": 129}))


def test_thread_serves_and_stops_with_open_requests(engine):
    ended = threading.Event()
    log = Log()

    def listen(event):
        log(event)
        if event.kind == "done":
            ended.set()

    engine.start()
    engine.submit(Request("a", prompt(2, 5), greedy(8), listener=listen))
    assert ended.wait(30)
    assert len(log.tokens("a")) == 8
    engine.submit(Request("b", prompt(2, 5), greedy(100), listener=log))
    engine.stop()
    assert log.reason("b") in ("cancelled", "length") and engine.num_open == 0 and engine.pool.num_used == 0


def test_a_stop_before_the_start_ends_what_is_open(tiny_engine):
    engine, log = tiny_engine(), Log()
    engine.submit(Request("early", prompt(2, 5), greedy(8), listener=log))
    engine.stop()
    assert log.reason("early") == "cancelled" and engine.num_open == 0


def test_no_step_holds_a_second_cache(tiny_model):
    """Temporaries against a cache made large on purpose: a copy of it would be 100 % of it."""
    engine = Engine(tiny_model, None, EngineConfig(**{**vars(CONFIG), "num_pages": 20_000}))
    assert engine.runner.cache_bytes > 10e6
    for cost in engine.runner.costs:
        assert cost.alias is not None and cost.temp is not None
        assert cost.alias >= engine.runner.cache_bytes, "the cache is not donated"
        assert cost.temp <= 0.01 * engine.runner.cache_bytes, f"{cost.shape} copies the cache"
