"""From a config's scenarios, and the rates that the sides were calibrated at, to the loads of a benchmark."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from flexjax.bench.ab import Load
from flexjax.bench.scenario import OVERLOAD, UNKNOWN_ENDS, Limits, Scenario, ScenarioName
from flexjax.bench.workload import Item
from flexjax.refusal import Refusal

# A side may serve a little faster than when it was calibrated, and its window should still be full.
_SPARE = 1.05


@dataclasses.dataclass(frozen=True)
class SingleStreamConfig:
    queries: int = 64  # At least; LoadGen needs 64 for a p90, 662 for a p99.
    percentile: float = 0.9
    min_duration_s: float = 5.0


@dataclasses.dataclass(frozen=True)
class OfflineConfig:
    queries: int = 64  # At least; each side gets as many more as its calibrated rate needs to fill the window.
    min_duration_s: float = 5.0


@dataclasses.dataclass(frozen=True)
class PoissonConfig:
    queries: int = 459  # At least. LoadGen needs 459 within the limits for a p99, 44 for a p90.
    percentile: float = 0.99
    min_duration_s: float = 5.0
    rate_per_s: float | None = None  # Requests a second, the same for all sides; None takes it from the calibration:
    of_slowest: float = 0.7  # this fraction of what the slowest side does offline, so that every side sustains it.
    ttft_limit_ms: float = 2000.0
    tpot_limit_ms: float = 100.0

    def __post_init__(self):
        if not 0 < self.of_slowest < 1 and self.rate_per_s is None:
            raise Refusal(f"of_slowest is a fraction in (0, 1) of the slowest side's rate; got {self.of_slowest}.")

    @property
    def limits(self) -> Limits:
        return Limits(self.ttft_limit_ms, self.tpot_limit_ms)


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """The scenarios that are run in rounds."""

    scenarios: tuple[ScenarioName, ...]
    first_and_last: tuple[ScenarioName, ...]
    single_stream: SingleStreamConfig
    offline: OfflineConfig
    server: PoissonConfig
    interactive: PoissonConfig
    overload: float
    seed: int

    def poisson(self, name: str) -> PoissonConfig:
        return self.interactive if name == "Interactive" else self.server


def offline(config: PlanConfig, rate_per_s: float, label: str = "") -> Scenario:
    """Everything at once: as many queries as fill the window at that rate."""
    wanted = math.ceil(_SPARE * config.offline.min_duration_s * rate_per_s)
    return Scenario("Offline", max(config.offline.queries, wanted), seed=config.seed, label=label)


def poisson(config: PlanConfig, name: ScenarioName, rate_per_s: float, label: str = "") -> Scenario:
    wanted = config.poisson(name)
    return Scenario(
        name,
        wanted.queries,
        min_duration_s=wanted.min_duration_s,
        rate_per_s=rate_per_s,
        percentile=wanted.percentile,
        limits=wanted.limits,
        seed=config.seed,
        label=label,
    )


def loads(
    config: PlanConfig,
    rates: Mapping[str, float],
    items: Sequence[Item],
    unknown_ends: Sequence[Item] | None,
) -> tuple[list[Load], list[str]]:
    """What each round runs, and how rates were set, in words.

    `rates` is what each side did offline, in requests/s, the baseline first. `unknown_ends` are the items
    whose answers end where no side can know. These and the overload are for the baseline and the last side alone,
    as are the scenarios of `first_and_last`.
    """
    found, notes = [], []
    first, last = next(iter(rates)), list(rates)[-1]
    for name in (*config.scenarios, *config.first_and_last):
        taking = rates if name in config.scenarios else {side: rates[side] for side in (first, last)}
        slowest = min(taking, key=lambda side: rates[side])
        if name == "Offline":
            found.append(Load(items, {side: offline(config, rate) for side, rate in taking.items()}))
        elif name == "SingleStream":
            single = config.single_stream
            scenario = Scenario(
                name, single.queries, single.min_duration_s, percentile=single.percentile, seed=config.seed
            )
            found.append(Load(items, dict.fromkeys(taking, scenario)))
        elif name == "replay":
            scenario = Scenario(name, len(items), limits=config.server.limits, seed=config.seed)
            found.append(Load(items, dict.fromkeys(taking, scenario)))
        else:
            wanted = config.poisson(name)
            rate = wanted.rate_per_s or wanted.of_slowest * rates[slowest]
            found.append(Load(items, dict.fromkeys(taking, poisson(config, name, rate))))
            of = "" if wanted.rate_per_s else f", {wanted.of_slowest:.0%} of what {slowest} does offline"
            notes.append(
                f"{name}: {rate:.1f} requests/s for every side{of}; limits {wanted.ttft_limit_ms:g} ms to the first "
                f"token and {wanted.tpot_limit_ms:g} ms a token at p{100 * wanted.percentile:g}"
            )
    if unknown_ends is not None:
        ends = {side: offline(config, rates[side], UNKNOWN_ENDS) for side in (first, last)}
        found.append(Load(unknown_ends, ends))
    if config.overload:
        rate = config.overload * rates[first]
        scenario = poisson(config, "Server", rate, OVERLOAD)
        found.append(Load(items, dict.fromkeys((first, last), scenario)))
        notes.append(
            f"Server, overload: {rate:.1f} requests/s, {config.overload:g} times what {first} does offline. Its queue "
            "grows as long as the run lasts, so its latencies are not compared"
        )
    return found, notes
