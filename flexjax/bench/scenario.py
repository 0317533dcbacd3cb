"""What load is put on a target: MLPerf's scenarios, and the replay of a recorded trace."""

import dataclasses
from typing import Literal

from flexjax.refusal import Refusal

ScenarioName = Literal["SingleStream", "Offline", "Server", "Interactive", "replay"]

# Titles of loads that are a scenario with a difference.
UNKNOWN_ENDS = "Offline, ends unknown"
OVERLOAD = "Server, overload"

POISSON: tuple[ScenarioName, ...] = ("Server", "Interactive")  # Their requests arrive at random, under limits.


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a user is promised; a request within both is good."""

    ttft_ms: float
    tpot_ms: float

    def __post_init__(self):
        if not (self.ttft_ms > 0 and self.tpot_ms > 0):
            raise Refusal(f"Latency limits must be positive; got TTFT {self.ttft_ms} ms, TPOT {self.tpot_ms} ms.")


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One load.

    - SingleStream: one request at a time, the next when the last is done.
    - Offline: everything at once.
    - Server: Poisson arrivals at `rate_per_s`, under `limits` at `percentile`.
    - Interactive: Server with tighter limits.
    - replay: arrivals at the workload's own offsets, LoadGen not involved.

    Two runs of equal scenarios see the same prompts in the same order at the same offsets.
    """

    name: ScenarioName
    queries: int  # At least so many; exactly so many unless `min_duration_s` asks for more.
    min_duration_s: float = 0.0
    rate_per_s: float = 0.0  # Server and Interactive.
    percentile: float = 0.99  # Fraction of requests that must be within the limits.
    limits: Limits | None = None
    seed: int = 0
    label: str = ""  # What the tables call it; empty takes the name.

    def __post_init__(self):
        if self.queries < 1:
            raise Refusal(f"{self.name} needs at least one query; got {self.queries}.")
        if not 0 <= self.seed < 2**32:
            raise Refusal(f"{self.name}: a seed lies in [0, 2**32); got {self.seed}.")
        if self.poisson and not (self.rate_per_s > 0 and self.limits):
            raise Refusal(
                f"{self.name} needs a positive rate_per_s and latency limits; got {self.rate_per_s} and {self.limits}."
            )
        if not 0 < self.percentile < 1:
            raise Refusal(f"{self.name}: percentile is a fraction in (0, 1), e.g. 0.99; got {self.percentile}.")

    @property
    def title(self) -> str:
        return self.label or self.name

    @property
    def poisson(self) -> bool:
        return self.name in POISSON
