import jax.numpy as jnp
import pytest

from flexjax.lab import Loop, Probe, measure
from flexjax.lab.timing import waiting


def test_a_loop_feeds_each_result_to_the_next_call():
    loop = Loop(lambda x, y: x + y, jnp.zeros(()), jnp.float32(2))  # Runs once when made.
    assert loop(3) > 0
    assert waiting(loop)(2) > 0
    assert float(loop._state) == 12


def test_rounds_alternate_and_the_median_counts():
    order = []

    def run(name, seconds):
        def calls(n):
            order.append(name)
            return n * next(seconds)

        return calls

    slow = Probe("slow", "a", 6.0, run("slow", iter([1.0, 3.0, 1.0, 2.0])))
    fast = Probe("fast", "a", 6.0, run("fast", iter([1.0, 0.5, 0.5, 4.0])))
    a, b = measure([slow, fast], rounds=3, round_s=1.0)
    assert order == ["slow", "fast", *["slow", "fast"] * 3]  # Each once to find how often, then in turn.
    assert (a.low, a.median, a.high) == (1.0, 2.0, 3.0)
    assert b.rate == 12.0


@pytest.mark.parametrize("seconds_a_call", [1e-4, 1e-2, 10.0])
def test_a_round_is_filled(seconds_a_call):
    calls = []

    def run(n):
        calls.append(n)
        return n * seconds_a_call

    list(measure([Probe("p", "k", 1.0, run)], rounds=1, round_s=0.1))
    assert calls[-1] == max(1, round(0.1 / seconds_a_call))


def test_the_best_of_some_calls_leaves_the_first_out():
    seconds = iter([0.1, 3.0, 2.0, 4.0])
    assert Probe("p", "k", 6.0, lambda n: n * next(seconds)).best(calls=3) == 3.0
