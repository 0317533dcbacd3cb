"""What callers of an engine rely on: of one, of several that look like one, of one that another process leads."""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from flexjax.engine.config import EngineConfig
from flexjax.engine.device.placement import Placement
from flexjax.engine.device.runner import StepRunner
from flexjax.engine.request import Request
from flexjax.engine.stats import EngineStats
from flexjax.engine.tokenizer import Vocabulary


class TakesRequests(Protocol):
    """`Engine`, `Replicas` and `Remote`. May be called by any thread."""

    def start(self) -> None:
        """Serves from a thread of its own from now on; nothing where it does already."""
        ...

    def stop(self) -> None:
        """Ends what is open as cancelled, and returns when the thread has ended."""
        ...

    def submit(self, request: Request) -> None:
        """Takes a request; its listener is told of every token. Refusal for a bad one, QueueFull for one too many."""
        ...

    def cancel(self, request_id: str) -> None:
        """Ends a request; an unknown id is ignored."""
        ...

    def holds(self, request_id: str) -> bool:
        """Whether a request of that id is open."""
        ...

    def step(self) -> bool:
        """One turn, for callers without a thread; False when there is nothing to do."""
        ...

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        ...

    @property
    def failure(self) -> BaseException | None:
        """What ended a turn early, so that no request can be taken any more."""
        ...

    @property
    def runners(self) -> tuple[StepRunner, ...]:
        """One a replica, or where that is elsewhere, of one like it."""
        ...

    @property
    def stats(self) -> EngineStats: ...


class ServesModel(TakesRequests, Protocol):
    """`Engine` and `Replicas`: what `load_engine` gives."""

    config: EngineConfig
    model_config: Any  # Of the model's family.
    vocabulary: Vocabulary | None
    placement: Placement
    max_model_len: int  # Tokens of a prompt and its answer together.
    meeting: Any  # Where several processes agree on calls; None in one.

    @property
    def here(self) -> tuple[Any, ...]:
        """The `Engine`s in which this process has a part, and which it does not lead from afar."""
        ...

    def check(self, request: Request) -> None:
        """Refusal, with the rule, the values and the way out, for a request that cannot be served."""
        ...

    def check_tokens(self, token_ids: Iterable[int]) -> None:
        """Refusal for ids that the model has no embedding for."""
        ...

    def score(self, tokens: Iterable[int], rows_per_step: int) -> np.ndarray:
        """Float32 logits [T, V] of a text."""
        ...
