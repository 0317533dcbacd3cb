"""What the engine notes about itself while it runs."""

import collections
import dataclasses

# Fields of `EngineStats` that add up over replicas.
SUMS = (
    "load_seconds",
    "compile_seconds",
    "host_seconds",
    "wait_seconds",
    "preemptions",
    "output_tokens",
    "cache_values_written",
    "cache_values_clipped",
)


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
    for the device; what is left of the wall clock is idling. `cache_values_written` counts the numbers of keys and
    values that went into an int8 or float8 cache, `cache_values_clipped` those of them that it cannot hold.
    """

    page_capacity: int
    max_num_seqs: int
    load_seconds: float = 0.0
    compile_seconds: float = 0.0
    host_seconds: float = 0.0
    wait_seconds: float = 0.0
    preemptions: int = 0
    output_tokens: int = 0
    cache_values_written: int = 0
    cache_values_clipped: int = 0
    samples: collections.deque[StepSample] = dataclasses.field(default_factory=_last_samples)
    _device_count: int = 0  # Clipped values so far, by the last step that told it.

    def count_cache(self, written: int, device_count: int) -> None:
        """So many values were written, and the device's count of clipped ones, modulo 2**32, stands at that."""
        self.cache_values_written += written
        self.cache_values_clipped += (device_count - self._device_count) % 2**32
        self._device_count = device_count

    def copy(self) -> "EngineStats":
        """As they are now, while the engine's thread goes on counting."""
        return dataclasses.replace(self, samples=self.samples.copy())

    def reset(self) -> None:
        self.host_seconds = self.wait_seconds = 0.0
        self.preemptions = self.output_tokens = 0
        self.cache_values_written = self.cache_values_clipped = 0
        self.samples = _last_samples()
