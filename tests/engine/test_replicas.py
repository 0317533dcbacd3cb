"""Several engines look like one."""

from pathlib import Path

import pytest
from devices import run_tests

from flexjax.engine import Engine, EngineConfig, Replicas, Request, SamplingParams, TokenEvent, load_engine

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


def test_devices_without_a_mesh_are_refused():
    with pytest.raises(ValueError, match=r"give mesh=MeshConfig\(tensor=…\) with them"):
        load_engine("nowhere", CONFIG, devices=[])
