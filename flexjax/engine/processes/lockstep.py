"""Engines over several processes: the first process leads, and the others take every turn with it.

A schedule follows from requests, their order and the tokens sampled alone. So it is enough that what an engine takes
in at the beginning of a turn is the same in each process: the leader sends it, turn by turn. Several engines over the
same processes take their turns one after the other: two programs that meet other processes, begun in one order here
and in another there, would wait for each other.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from flexjax.engine.engine import Engine, Scoring
from flexjax.engine.processes.post import Post
from flexjax.engine.request import Request
from flexjax.engine.scheduler import Plan
from flexjax.engine.sequence import Sequence as Running


@dataclasses.dataclass(frozen=True)
class Cancel:
    request_id: str


@dataclasses.dataclass(frozen=True)
class Replay:
    """In place of a turn: dispatches of one plan."""

    plan: Plan
    times: int


@dataclasses.dataclass(frozen=True)
class Followers:
    """The other processes of an engine, told by the leader what it takes in."""

    post: Post
    processes: tuple[int, ...]
    box: str  # One for all engines of the group.
    replica: int

    def __call__(self, taken: Sequence[Any]) -> None:
        """Also of nothing: they take as many turns as the leader."""
        self._send([letter for item in taken if (letter := _letter(item)) is not None])

    def replay(self, plan: Plan, times: int) -> None:
        """Has them dispatch one plan so often, with no turn around it, as the leader is about to."""
        self._send(Replay(plan, times))

    def _send(self, turn: Any) -> None:
        for process in self.processes:
            self.post.send(process, self.box, (self.replica, turn))


def _letter(item: Any) -> Request | Cancel | Scoring | None:
    if isinstance(item, Running):
        if item.index:  # Of several continuations the first stands for all.
            return None
        params = dataclasses.replace(item.request.params, seed=item.seed)
        return dataclasses.replace(item.request, params=params, listener=None)
    if isinstance(item, Scoring):
        return dataclasses.replace(item, result=None)
    return Cancel(item[0].request.id) if item else None


def watch(engine: Engine, post: Post) -> None:
    """Fails an engine that leads others once one of them is lost: a step may wait for its part for ever."""
    post.ended.wait()
    if not post.closed:
        engine.loop.fail(RuntimeError("A process that this engine runs in is gone."))


def follow(engines: Mapping[int, Engine], post: Post, box: str) -> None:
    """Takes the leader's turns of each replica until the end."""
    for engine in engines.values():
        engine.led = True
    try:
        while (turn := post.take(box)) is not None:
            replica, letters = turn
            engine = engines[replica]
            if isinstance(letters, Replay):
                for _ in range(letters.times):
                    engine.runner.run(letters.plan)
                continue
            for letter in letters:
                if isinstance(letter, Cancel):
                    engine.cancel(letter.request_id)
                elif isinstance(letter, Scoring):
                    engine.enqueue(letter)
                else:
                    engine.submit(letter)
            engine.step()
    except BaseException:  # Without its part nobody can go on.
        logging.exception("The engine failed.")
        post.abandon()
