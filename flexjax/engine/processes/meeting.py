"""Calls over several processes: process 0 does the work, and whoever made the same call gets its result."""

import hashlib
import pickle
from collections.abc import Callable
from typing import Any

from flexjax.engine.processes.post import Post
from flexjax.engine.teller import described
from flexjax.refusal import Refusal

_FOLLOWS = "follows"


class Meeting:
    """Every other process either makes the same calls in the same order, or follows: then process 0 calls alone."""

    def __init__(self, post: Post):
        self.post = post
        self._following: set[int] = set()

    def call(self, stated: str, work: Callable[[], Any]) -> Any:
        """What `work` returns or raises in process 0. Refusal, in every process, where one states another call."""
        digest = hashlib.sha256(stated.encode()).hexdigest()
        if self.post.index:
            return self._asked(digest)
        callers = self._gather()
        try:
            if any(theirs != digest for theirs in callers.values()):
                raise Refusal(
                    "An engine over several processes is given the same prompts and SamplingParams by each of them; "
                    "these differ. Read them from one file, let the others follow (LLM.follow), or give every process "
                    "a model of its own with devices=jax.local_devices()."
                )
            result = (work(), None)
        except Exception as error:
            self._answer(callers, (None, _portable(error)))
            raise
        except BaseException as error:  # Interrupted here: the others are not left waiting.
            self._answer(callers, (None, RuntimeError(f"Process 0 was interrupted: {described(error)}")))
            raise
        self._answer(callers, result)
        return result[0]

    def follow(self) -> None:
        """Says that this process makes no more calls; returns when process 0 has closed the model."""
        if not self.post.index:
            raise Refusal("Process 0 leads; the other processes follow it.")
        self.post.send(0, f"call-{self.post.index}", _FOLLOWS)
        self.post.ended.wait()
        if not self.post.closed:
            raise RuntimeError(f"The model has ended: {self.post.lost}.")

    def _gather(self) -> dict[int, str]:
        """The call of every process that does not follow."""
        callers = {}
        for process in range(1, self.post.count):
            if process not in self._following:
                theirs = self._take(f"call-{process}")
                if theirs == _FOLLOWS:
                    self._following.add(process)
                else:
                    callers[process] = theirs
        return callers

    def _answer(self, callers: dict[int, str], answer: tuple[Any, Exception | None]) -> None:
        for process in callers:
            self.post.send(process, "answer", answer)

    def _asked(self, digest: str) -> Any:
        self.post.send(0, f"call-{self.post.index}", digest)
        result, error = self._take("answer")
        if error is not None:
            raise error
        return result

    def _take(self, box: str) -> Any:
        letter = self.post.take(box)
        if letter is None:
            raise RuntimeError(
                "Process 0 has closed the model." if self.post.closed else f"The model has ended: {self.post.lost}."
            )
        return letter


def _portable(error: Exception) -> Exception:
    """The error itself where it can be sent to another process, else a RuntimeError that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # Whatever a library's own exception raises here.
        return RuntimeError(described(error))
    return error
