"""One factor at a time, then what helped together, then the best once more.

The last step is not for show: of many noisy figures the best is too good, so the winner is measured afresh and must
pay again.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from flexjax.lab import Candidate, Cost, Evaluator, Refused, Setting
from flexjax.refusal import Refusal

Phase = Literal["alone", "together", "again"]
Report = Callable[["Trial"], None]
AGAIN = 3  # Candidates that are measured afresh at most, the best first.


@dataclasses.dataclass(frozen=True)
class Factor:
    """A flag or block size, the values to try beside its default, and what it does: the reason in a set file."""

    name: str
    values: tuple[Setting, ...]
    note: str

    def __post_init__(self):
        if not self.values or not self.note:
            raise Refusal(f"A factor needs a value to try and a note of what it does; {self.name!r} lacks one.")


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    least_gain: float = 0.02  # Fraction of the time that a setting must save to be worth a flag.
    trials: int = 20  # Combinations tried of the factors that helped alone.
    exact: bool = True  # Only candidates whose results are bit for bit those of the defaults.
    confirm_effort: int = 3  # Times the usual rounds for the winner.
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.least_gain < 1 or self.trials < 1 or self.confirm_effort < 1:
            raise Refusal(f"least_gain lies in [0, 1), trials and confirm_effort are at least 1; got {self}.")


@dataclasses.dataclass(frozen=True)
class Trial:
    """A candidate and its cost; where it has none, why not."""

    phase: Phase
    candidate: Candidate
    cost: Cost | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Finding:
    """`best` is empty where nothing pays; `cost` is then None."""

    best: Candidate
    cost: Cost | None
    trials: tuple[Trial, ...]


def search(evaluate: Evaluator, factors: Sequence[Factor], config: SearchConfig, report: Report) -> Finding:
    """The best candidate made of the factors' values; each trial is told to `report` as it ends."""
    names = [factor.name for factor in factors]
    if len(set(names)) < len(names):
        raise Refusal(f"Each factor stands once, with all its values; got {', '.join(names)}.")
    made = _Trials(evaluate, config, report)
    for factor in factors:
        for value in factor.values:
            made.cost({factor.name: value}, "alone")
    # Half of the gain may be noise's; a setting that only helps beside another is not found.
    helpful = [f for f in factors if any(_helps(made.known(f.name, v), config.least_gain / 2) for v in f.values)]
    if len(helpful) > 1:
        _combine(made, helpful, config)
    for trial in made.ranked()[:AGAIN]:
        cost = made.cost(trial.candidate, "again")
        if cost is not None and cost.pays(config.least_gain):
            return Finding(trial.candidate, cost, tuple(made.trials))
    return Finding({}, None, tuple(made.trials))


class _Trials:
    """Every candidate tried, each once a phase."""

    def __init__(self, evaluate: Evaluator, config: SearchConfig, report: Report):
        self._evaluate, self._config, self._report = evaluate, config, report
        self._costs: dict[tuple[tuple[str, Setting], ...], Cost | None] = {}
        self.trials: list[Trial] = []

    def cost(self, candidate: Candidate, phase: Phase) -> Cost | None:
        """None where the compiler refuses the candidate, or where it changes results and must not."""
        key = tuple(sorted(candidate.items()))
        if key in self._costs and phase != "again":
            return self._costs[key]
        reason = ""
        try:
            cost = self._evaluate(candidate, self._config.confirm_effort if phase == "again" else 1)
        except Refused as error:
            cost, reason = None, f"refused: {error}"
        self.trials.append(Trial(phase, candidate, cost, reason))
        self._report(self.trials[-1])
        usable = cost is not None and (cost.same_results is not False or not self._config.exact)
        self._costs[key] = cost if usable else None
        return self._costs[key]

    def known(self, name: str, value: Setting) -> Cost | None:
        return self._costs[((name, value),)]

    def ranked(self) -> list[Trial]:
        """Those that pay so far, the best first."""
        paying = [
            (cost.ratio, i)
            for i, t in enumerate(self.trials)
            if (cost := self._costs[tuple(sorted(t.candidate.items()))]) and cost.pays(self._config.least_gain)
        ]
        return [self.trials[i] for _, i in sorted(paying)]


def _helps(cost: Cost | None, gain: float) -> bool:
    return cost is not None and cost.ratio <= 1 - gain


def _combine(made: _Trials, helpful: Sequence[Factor], config: SearchConfig) -> None:
    """The helpful factors together, each at its default (None) or one of its values: all combinations where the
    budget holds them, else as many as optuna picks, from the best of each on."""
    choices = {f.name: (None, *(v for v in f.values if made.known(f.name, v) is not None)) for f in helpful}
    if math.prod(map(len, choices.values())) <= config.trials:
        for values in itertools.product(*choices.values()):
            _ratio(made, dict(zip(choices, values, strict=True)))
        return
    optuna = _import_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=config.seed))
    study.enqueue_trial({name: _best_index(made, name, values) for name, values in choices.items()})

    def objective(trial: Any) -> float:
        # By index, because the categories of optuna hold no mixture of types.
        return _ratio(made, {n: values[trial.suggest_int(n, 0, len(values) - 1)] for n, values in choices.items()})

    study.optimize(objective, n_trials=config.trials)


def _ratio(made: _Trials, picked: Mapping[str, Setting | None]) -> float:
    candidate = {name: value for name, value in picked.items() if value is not None}
    cost = made.cost(candidate, "together") if candidate else None
    return 1.0 if not candidate else math.inf if cost is None else cost.ratio


def _best_index(made: _Trials, name: str, values: Sequence[Setting | None]) -> int:
    ratios = [1.0 if v is None else known.ratio if (known := made.known(name, v)) else math.inf for v in values]
    return min(range(len(values)), key=ratios.__getitem__)


def _import_optuna() -> Any:
    try:
        import optuna  # pyright: ignore[reportMissingImports] (an extra)
    except ModuleNotFoundError as error:
        raise Refusal(
            "Searching so many combinations takes the package optuna, which is not installed. Install the extra "
            "'search': pip install 'flexjax[search]'."
        ) from error
    return optuna
