"""Two processes on this machine, four devices each, serve one model split over all eight, or two replicas of it."""

import json
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from devices import REPOSITORY, environment

from flexjax.engine import Engine, EngineConfig, Request, SamplingParams
from flexjax.engine.processes.lockstep import Followers, follow, watch
from flexjax.engine.scheduler import Plan

FOLDER = Path(__file__).parents[2] / "models" / "transformer" / "golden" / "llama3"
MESHES = ["one over both", "one in each", "two over both"]


class Boxes:
    """A `Post` of one process."""

    def __init__(self):
        self.turns: list = []
        self.ended = threading.Event()
        self.closed = False

    def send(self, to, box, letter):
        self.turns.append(letter)

    def take(self, box):
        return self.turns.pop(0) if self.turns else None

    def abandon(self):
        self.ended.set()


def test_a_follower_takes_the_same_turns(tiny_model):
    """Through cancellations, a listener that raises, a full pool and drawn seeds: page for page and token for token."""
    leader, follower = (Engine(tiny_model, None, CONFIG) for _ in range(2))
    post, plans = Boxes(), {leader: [], follower: []}
    for engine, kept in plans.items():
        engine.runner.run = lambda plan, run=engine.runner.run, kept=kept: kept.append(stated(plan)) or run(plan)
    leader.followers = Followers(post, (1,), "turns", replica=0)

    def broken(event):
        if event.kind == "token":
            raise KeyError("broken listener")

    for i in range(8):
        params = SamplingParams(temperature=i % 2, max_tokens=30, n=1 + i // 6)
        leader.submit(Request(str(i), tuple(range(1, 4 + 3 * i)), params, listener=broken if i == 3 else None))
    for turn in range(10**3):
        if not leader.step():
            break
        if turn in (5, 9):
            leader.cancel(str(turn % 4))
    assert leader.score((1, 2, 3), 8).shape == (3, 96)  # Between two turns, by a thread of its own.
    leader.stop()
    assert leader.stats.preemptions > 0
    follow({0: follower}, post, "turns")
    assert len(plans[leader]) > 30 and plans[follower] == plans[leader]
    assert follower.num_open == 0 and follower.pool.num_used == 0


def test_a_follower_dispatches_a_plan_as_often_as_its_leader():
    post, ran = Boxes(), []
    plan = Plan((), 0, 1)
    Followers(post, (1,), "turns", replica=0).replay(plan, 3)
    runner = types.SimpleNamespace(run=ran.append)
    follow({0: types.SimpleNamespace(runner=runner)}, post, "turns")
    assert ran == [plan] * 3


CONFIG = EngineConfig(dtype="float32", max_num_seqs=3, max_num_batched_tokens=16, page_size=4, num_pages=20)


def spoil(engine: Engine, request_id: str, at: int) -> None:
    """From token `at` of a request on its tokens cannot be made text."""
    read = engine._read

    def broken(sequence, new):
        if sequence.request.id == request_id and len(sequence.tokens) >= at:
            raise SystemExit("a panic")
        return read(sequence, new)

    engine._read = broken


def test_tokens_that_cannot_be_made_text_end_their_request_in_every_process(tiny_model, caplog):
    leader, follower = (Engine(tiny_model, None, CONFIG) for _ in range(2))
    post, plans, ends = Boxes(), {leader: [], follower: []}, {}
    for engine, kept in plans.items():
        engine.runner.run = lambda plan, run=engine.runner.run, kept=kept: kept.append(stated(plan)) or run(plan)
        spoil(engine, "1", at=9)
    leader.followers = Followers(post, (1,), "turns", replica=0)

    def listen(event):
        if event.kind == "done":
            ends.setdefault(event.request_id, []).append(event.finish_reason)

    for i in range(5):
        params = SamplingParams(temperature=i % 2, max_tokens=30, n=1 + i // 4)
        leader.submit(Request(str(i), tuple(range(1, 4 + 3 * i)), params, listener=listen))
    for turn in range(10**3):
        if not leader.step():
            break
        if turn == 6:
            leader.cancel("0")
    follow({0: follower}, post, "turns")
    assert ends == {"0": ["cancelled"], "1": ["error"], "2": ["length"], "3": ["length"], "4": ["length"] * 2}
    assert len(plans[leader]) > 20 and plans[follower] == plans[leader]
    assert follower.num_open == 0 and follower.pool.num_used == 0 and not post.ended.is_set()


def test_a_follower_that_alone_cannot_go_on_ends_it_for_all(tiny_model, caplog):
    leader, follower = (Engine(tiny_model, None, CONFIG) for _ in range(2))
    post, told, events = Boxes(), threading.Event(), []
    spoil(follower, "a", at=5)
    leader.followers = Followers(post, (1,), "turns", replica=0)

    def listen(event):
        events.append(event)
        if event.kind == "done":
            told.set()

    leader.submit(Request("a", (1, 2), SamplingParams(max_tokens=70), listener=listen))
    for _ in range(10):
        leader.step()
    threading.Thread(target=watch, args=(leader, post), daemon=True).start()
    follow({0: follower}, post, "turns")
    assert told.wait(30) and events[-1].fatal and "A process that this engine runs in is gone" in events[-1].error
    with pytest.raises(RuntimeError, match="has failed"):
        leader.score((1, 2, 3), 8)


def test_a_leader_that_was_stopped_does_not_go_on_alone(tiny_model):
    leader = Engine(tiny_model, None, CONFIG)
    leader.followers = Followers(Boxes(), (1,), "turns", replica=0)
    leader.start()
    leader.stop()
    with pytest.raises(RuntimeError, match=r"cannot start again.*Load the model anew"):
        leader.start()


def stated(plan) -> list:
    return [
        (c.sequence.request.id, c.start, c.length, c.samples, c.sequence.seed, c.sequence.pages[:]) for c in plan.chunks
    ]


@pytest.fixture(scope="module")
def golden():
    return np.load(FOLDER / "golden.npz")


@pytest.fixture(scope="module")
def greedy(golden) -> list[list[int]]:
    """The first of the published tokens: with four devices a process a step takes long."""
    return [golden[f"greedy_{i}"][:24].tolist() for i in range(3)]


@pytest.fixture(scope="module")
def printed(golden) -> list[dict]:
    """What each process printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    prompts = json.dumps([golden[f"prompt_{i}"].tolist() for i in range(3)])
    script = Path(__file__).with_name("generate_in_two_processes.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(FOLDER), prompts],
            cwd=REPOSITORY,
            env=environment(4)
            | {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        texts = [process.communicate(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, texts, strict=True):
        assert process.returncode == 0, errors[-4000:]
    made = [json.loads(text.splitlines()[-1]) for text, _ in texts]
    assert [one["devices"] for one in made] == [[4, 8], [4, 8]]
    return made


@pytest.fixture(params=MESHES)
def made(request, printed) -> list[dict]:
    return [one[request.param] for one in printed]


@pytest.mark.slow
def test_the_same_call_makes_the_published_continuation_in_both(made, golden, greedy):
    for one in made:
        assert one["greedy"] == greedy
        np.testing.assert_allclose(one["logits"], golden["logits_0"][-1], atol=2e-4, rtol=0)


@pytest.mark.slow
def test_both_draw_the_same(made):
    first, second = made
    assert first["drawn"] == second["drawn"]
    assert first["drawn"][0] != first["drawn"][1]


@pytest.mark.slow
def test_process_0_streams_and_generates_while_the_other_follows(made, greedy):
    first, second = made
    assert first["stream"] == greedy * 2
    assert first["alone"] == greedy
    assert first["open"] == 0
    assert second["stream"].startswith("Unsupported: Process 0 takes the requests")


@pytest.mark.slow
def test_every_replica_had_its_share(made):
    first, _ = made
    assert min(first["tokens"]) > 0 and sum(first["tokens"]) >= 3 * 3 * 24
    assert first["in order"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        ("other prompts", "Refusal: An engine over several processes is given the same prompts"),
        ("bad prompt", "Refusal: Prompt 1: A prompt needs at least one token"),
    ],
)
def test_what_two_processes_cannot_do_is_refused_in_both(made, attempt, message):
    assert [one[attempt].startswith(message) for one in made] == [True, True], [one[attempt] for one in made]
