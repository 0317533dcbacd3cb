"""What the engine notes about itself while it runs."""

import collections
import dataclasses


@dataclasses.dataclass(frozen=True)
class StepSample:
    """One dispatch, when it was made."""

    time: float  # s, time.perf_counter
    running: int  # Sequences in the step.
    waiting: int
    used_pages: int
    rows: int
    num_steps: int
    prefill_rows: int


def _last_samples() -> collections.deque[StepSample]:
    return collections.deque(maxlen=100_000)  # Minutes of a busy engine; a server runs for months.


@dataclasses.dataclass
class EngineStats:
    """Counts since the start or the last `reset`.

    `host_seconds` is spent scheduling, packing and handing tokens over; `wait_seconds` is spent waiting
    for the device; what is left of the wall clock is idling.
    """

    page_capacity: int
    max_num_seqs: int
    load_seconds: float = 0.0
    compile_seconds: float = 0.0
    host_seconds: float = 0.0
    wait_seconds: float = 0.0
    preemptions: int = 0
    output_tokens: int = 0
    samples: collections.deque[StepSample] = dataclasses.field(default_factory=_last_samples)

    def copy(self) -> "EngineStats":
        """As they are now, while the engine's thread goes on counting."""
        return dataclasses.replace(self, samples=self.samples.copy())

    def reset(self) -> None:
        self.host_seconds = self.wait_seconds = 0.0
        self.preemptions = self.output_tokens = 0
        self.samples = _last_samples()
