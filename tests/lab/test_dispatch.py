from flexjax.lab import dispatch
from flexjax.lab.dispatch import ARGUMENTS


def test_a_call_that_waits_or_carries_more_takes_longer():
    probes = {p.name: p for p in dispatch()}
    assert all(p.run(3) > 0 and p.work == 0 for p in probes.values())
    least = {name: min(p.run(20) for _ in range(5)) for name, p in probes.items()}
    assert least[f"of {ARGUMENTS} arrays"] > least["waited for"]
