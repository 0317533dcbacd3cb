"""One continuation on its way through the engine."""

import dataclasses
import enum

from flexjax.engine.pages import PagePools
from flexjax.engine.request import Limit, Request
from flexjax.engine.teller import Teller
from flexjax.engine.text import TextStream
from flexjax.refusal import Refusal


class Status(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"  # Holds a slot and pages.
    DRAINING = "draining"  # Its last step is dispatched; slot and pages are given back already.
    FINISHED = "finished"


@dataclasses.dataclass(eq=False)
class Sequence:
    """Host-side state of continuation `index` of a request.

    Dispatches run ahead of the host: a step is scheduled by counts alone, before the values that
    earlier steps sampled are known. So two clocks run:
      - `num_scheduled` rows and `num_sampled` outputs, of every dispatch made;
      - `tokens`, the prompt and the outputs that have arrived.

    Invariants:
      - `len(tokens) - num_prompt <= num_sampled <= limit`;
      - once prefilled, `num_scheduled == num_prompt + num_sampled - 1`;
      - `pages` holds at least `num_scheduled` tokens while RUNNING and is empty otherwise.
    """

    request: Request
    index: int
    arrival: int  # Order of submission.
    seed: int
    limit: int  # Outputs at most: max_tokens, or what the context leaves.
    stop_ids: frozenset[int]
    stream: TextStream
    tokens: list[int]
    pages: list[list[int]] = dataclasses.field(default_factory=list)  # Of each page table.
    slot: int = -1
    status: Status = Status.WAITING
    target: int = 0  # Tokens to prefill: those known at admission.
    num_scheduled: int = 0
    num_sampled: int = 0
    in_flight: int = 0  # Dispatches whose results have not arrived.
    announced: bool = False  # Whether "scheduled" has been told.
    num_preempted: int = 0
    limited_by: Limit = "max_tokens"  # What `limit` comes from.
    teller: Teller = dataclasses.field(default_factory=Teller)  # One for all continuations of the request.

    def __post_init__(self):
        self.num_prompt = len(self.request.prompt_token_ids)

    @property
    def key(self) -> tuple[int, int, int]:
        """Who goes first: lower priority value, then earlier arrival."""
        return (self.request.priority, self.arrival, self.index)

    @property
    def prefilling(self) -> bool:
        return self.num_scheduled < self.target

    @property
    def remaining(self) -> int:
        """Outputs not yet scheduled."""
        return self.limit - self.num_sampled


def output_limit(request: Request, max_model_len: int, pool: PagePools) -> tuple[int, Limit]:
    """How many tokens a request may get at most, and what sets that number.

    The pool counts only where `max_tokens` is None: a number that it has no pages for is refused, not cut.
    Refusal where `min_tokens` is more.
    """
    length, asked = len(request.prompt_token_ids), request.params.max_tokens
    limits: list[tuple[float, Limit]] = [] if asked is None else [(asked, "max_tokens")]
    limits.append((max_model_len - length, "max_model_len"))
    if asked is None:
        limits.append((pool.longest - length, "num_pages"))
    most, what = min(limits, key=lambda limit: limit[0])
    if request.params.min_tokens > most:
        raise Refusal(
            f"min_tokens must fit behind the prompt: {max(most, 0)} tokens do ({what}), wanted are "
            f"{request.params.min_tokens}. Lower it, or give the engine a larger max_model_len or num_pages."
        )
    return int(most), what
