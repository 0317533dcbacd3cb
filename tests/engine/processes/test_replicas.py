"""Several engines look like one."""

import threading
from pathlib import Path

import pytest
from devices import run_tests

from flexjax import LLM
from flexjax.engine import Engine, EngineConfig, QueueFull, Replicas, Request, SamplingParams, TokenEvent, load_engine

CONFIG = EngineConfig(dtype="float32", max_num_seqs=2, max_num_batched_tokens=32, page_size=4, num_pages=60)
GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.mark.slow
def test_on_eight_devices():
    run_tests(Path(__file__).with_name("replicas_on_eight_devices.py"), count=8)


@pytest.fixture(scope="module")
def pair(tiny_model) -> Replicas:
    """Two engines, both on the one device that there is."""
    return Replicas([Engine(tiny_model, None, CONFIG) for _ in range(2)])


def test_a_request_goes_to_the_engine_with_the_fewest_open(pair):
    events: list[TokenEvent] = []
    for name in "abcde":
        pair.submit(Request(name, (1, 2, 3), GREEDY, listener=events.append))
    first, second = pair.engines
    assert [first.num_open, second.num_open, pair.num_open] == [3, 2, 5]
    assert first.holds("a") and second.holds("b") and not pair.holds("f")
    while pair.step():
        pass
    assert pair.num_open == 0
    ends = {e.request_id: e.finish_reason for e in events if e.kind == "done"}
    assert ends == dict.fromkeys("abcde", "length")
    tokens = {name: [t for e in events if e.request_id == name for t in e.token_ids] for name in "abcde"}
    assert len({tuple(t) for t in tokens.values()}) == 1, "the same prompt has the same answer on either"
    assert pair.stats.output_tokens == 5 * 6
    times = [sample.time for sample in pair.stats.samples]
    assert times == sorted(times) and len(times) == sum(len(e.stats.samples) for e in pair.engines)


def test_an_id_is_unique_across_engines_and_cancelled_wherever_it_is(pair):
    events: list[TokenEvent] = []
    long = SamplingParams(temperature=0, max_tokens=90)
    pair.submit(Request("a", (1, 2), long, listener=events.append))
    with pytest.raises(ValueError, match="'a' is taken"):
        pair.submit(Request("a", (1, 2), long))
    pair.submit(Request("b", (1, 2), long, listener=events.append))
    pair.step()
    pair.cancel("b")
    while pair.step():
        pass
    assert {e.request_id: e.finish_reason for e in events if e.kind == "done"} == {"a": "length", "b": "cancelled"}


def test_a_bad_request_is_refused_at_the_door(pair):
    with pytest.raises(ValueError, match="at least one token"):
        pair.submit(Request("a", (), GREEDY))
    assert pair.num_open == 0


def test_the_death_of_one_leaves_nobody_waiting_and_the_others_serve(tiny_model, monkeypatch, caplog):
    replicas = Replicas([Engine(tiny_model, None, CONFIG) for _ in range(2)])
    broken, sound = replicas.engines
    ends: dict[str, TokenEvent] = {}
    told = threading.Semaphore(0)

    def listen(event):
        if event.kind == "done":
            ends[event.request_id] = event
            told.release()

    def fail(plan):
        raise SystemExit("device lost")

    monkeypatch.setattr(broken.runner, "run", fail)
    for name in "abcd":
        replicas.submit(Request(name, (1, 2, 3), GREEDY, listener=listen))
    replicas.start()
    for _ in "abcd":
        assert told.acquire(timeout=30)
    assert {name: (e.finish_reason, e.fatal) for name, e in ends.items()} == {
        "a": ("error", True),
        "b": ("length", False),
        "c": ("error", True),
        "d": ("length", False),
    }
    assert isinstance(replicas.failure, SystemExit) and sound.failure is None
    llm = LLM(replicas)
    assert [o.outputs[0].finish_reason for o in llm.generate([(1, 2)] * 3, GREEDY)] == ["length"] * 3
    monkeypatch.setattr(sound.runner, "run", fail)
    with pytest.raises(RuntimeError, match="The engine failed: SystemExit: device lost") as raised:
        llm.generate((1, 2), GREEDY)
    assert isinstance(raised.value.__cause__, SystemExit)
    with pytest.raises(RuntimeError, match="has failed and takes no requests"):
        llm.generate((1, 2), GREEDY)
    llm.close()
    llm.close()


def test_a_full_replica_is_passed_over(pair, monkeypatch):
    def full(request):
        raise QueueFull("no room")

    monkeypatch.setattr(pair.engines[0], "submit", full)
    events: list[TokenEvent] = []
    pair.submit(Request("a", (1, 2), GREEDY, listener=events.append))
    assert pair.engines[1].holds("a")
    while pair.step():
        pass
    assert events[-1].finish_reason == "length"
    monkeypatch.setattr(pair.engines[1], "submit", full)
    with pytest.raises(QueueFull, match="no room"):
        pair.submit(Request("b", (1, 2), GREEDY))


def test_whichever_cannot_stop_the_others_do(tiny_model, monkeypatch):
    replicas = Replicas([Engine(tiny_model, None, CONFIG) for _ in range(2)])
    stopped = []

    def cannot():
        raise RuntimeError("no")

    monkeypatch.setattr(replicas.engines[0], "stop", cannot)
    monkeypatch.setattr(replicas.engines[1], "stop", lambda: stopped.append(1))
    with pytest.raises(RuntimeError, match="no"):
        replicas.stop()
    assert stopped


def test_devices_without_a_mesh_are_refused():
    with pytest.raises(ValueError, match=r"give mesh=MeshConfig\(tensor=…\) with them"):
        load_engine("nowhere", CONFIG, devices=[])
