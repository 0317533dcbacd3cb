"""The search against evaluators whose truth is known."""

import random

import pytest

from flexjax.lab import Cost, Refused
from flexjax.tune import Factor, SearchConfig, search

CONFIG = SearchConfig(least_gain=0.02, trials=20)
FACTORS = [
    Factor("a", (1, 2), "why"),
    Factor("b", (True,), "why"),
    Factor("c", ("x", "y"), "why"),
    Factor("d", (0,), "why"),
]


class Truth:
    """Costs by a formula of the candidate; `noise` is the half-width of a uniform error of a round's ratio."""

    kind, unit = "measured", "ms"

    def __init__(self, ratio, noise=0.0, refuse=(), changes=()):
        self.ratio, self.noise, self.refuse, self.changes = ratio, noise, refuse, changes
        self.random, self.asked = random.Random(0), []

    def __call__(self, candidate, effort=1):
        self.asked.append((dict(candidate), effort))
        if set(self.refuse) & set(candidate):
            raise Refused("No such compile option")
        true = self.ratio(candidate)
        rounds = sorted(true + self.random.uniform(-self.noise, self.noise) for _ in range(9 * effort))
        ratio, high = rounds[len(rounds) // 2], rounds[int(0.9 * len(rounds))]
        return Cost(ratio, rounds[0], high, ratio, 1.0, not set(self.changes) & set(candidate))


def product(**gains):
    """Gains of the named settings multiply; others cost nothing and bring nothing."""

    def ratio(candidate):
        total = 1.0
        for name, value in candidate.items():
            total *= gains.get(f"{name}_{value}", 1.0)
        return total

    return ratio


def found(truth, factors=FACTORS, config=CONFIG):
    told = []
    finding = search(truth, factors, config, told.append)
    assert told == list(finding.trials)
    return finding


def test_every_value_is_tried_alone_first():
    truth = Truth(product())
    found(truth)
    assert [c for c, _ in truth.asked] == [dict(a=1), dict(a=2), dict(b=True), dict(c="x"), dict(c="y"), dict(d=0)]


def test_what_helps_together_is_found():
    finding = found(Truth(product(a_1=0.95, a_2=0.9, b_True=0.97, c_x=1.1, d_0=0.93)))
    assert finding.best == dict(a=2, b=True, d=0)
    assert finding.cost.ratio == pytest.approx(0.9 * 0.97 * 0.93)


def test_settings_that_hurt_each_other_are_not_taken_together():
    def ratio(candidate):
        return 1.2 if {"a", "d"} <= set(candidate) else product(a_2=0.95, d_0=0.9)(candidate)

    assert found(Truth(ratio)).best == dict(d=0)


def test_many_combinations_are_searched_within_the_budget():
    pytest.importorskip("optuna", reason="optuna is not installed (extra 'search')")
    factors = [Factor(name, (1, 2, 3), "why") for name in "abcdef"]
    truth = Truth(lambda c: 0.97 ** sum(v == 2 for v in c.values()) * 0.99 ** sum(v == 1 for v in c.values()))
    finding = found(truth, factors, SearchConfig(trials=15))
    assert finding.best == dict.fromkeys("abcdef", 2)  # The best of each is where the search begins.
    assert sum(t.phase == "together" for t in finding.trials) <= 15


def test_where_nothing_pays_nothing_is_found():
    finding = found(Truth(product(a_1=0.99, b_True=1.05)))
    assert finding.best == {} and finding.cost is None


def test_noise_alone_is_not_taken_for_a_gain():
    """Twenty useless settings, judged by nine noisy rounds each: the least of them looks good, and is not."""
    pytest.importorskip("optuna", reason="optuna is not installed (extra 'search')")
    factors = [Factor(f"f{i}", (1, 2), "why") for i in range(10)]
    finding = found(Truth(product(), noise=0.1), factors)
    assert any(t.cost.ratio < 0.98 for t in finding.trials)
    assert finding.best == {}


def test_a_gain_is_found_in_noise_and_confirmed_with_more_rounds():
    truth = Truth(product(d_0=0.8), noise=0.1)
    finding = found(truth)
    assert "d" in finding.best
    assert truth.asked[-1][1] == CONFIG.confirm_effort
    assert finding.trials[-1].phase == "again"


def test_what_the_compiler_refuses_is_noted_and_passed_over():
    finding = found(Truth(product(a_2=0.9, d_0=0.5), refuse=("d",)))
    assert finding.best == dict(a=2)
    (refused,) = [t for t in finding.trials if t.candidate == dict(d=0)]
    assert refused.cost is None and refused.reason == "refused: No such compile option"


@pytest.mark.parametrize(("exact", "best"), [(True, dict(a=2)), (False, dict(a=2, d=0))])
def test_a_setting_that_changes_results_is_taken_only_when_asked(exact, best):
    truth = Truth(product(a_2=0.9, d_0=0.5), changes=("d",))
    assert found(truth, config=SearchConfig(exact=exact)).best == best


def test_no_candidate_is_evaluated_twice_but_to_confirm():
    truth = Truth(product(a_1=0.95, a_2=0.9, b_True=0.97, d_0=0.93))
    found(truth)
    usual = [str(sorted(c.items())) for c, effort in truth.asked if effort == 1]
    assert len(usual) == len(set(usual))


def test_a_factor_stands_once():
    with pytest.raises(ValueError, match="Each factor stands once"):
        found(Truth(product()), [Factor("a", (1,), "why"), Factor("a", (2,), "why")])
    for values, note in (((), "why"), ((1,), "")):
        with pytest.raises(ValueError, match="'a' lacks one"):
            Factor("a", values, note)


def test_a_search_of_nothing_is_refused():
    with pytest.raises(ValueError, match="least_gain lies in"):
        SearchConfig(least_gain=1.0)
