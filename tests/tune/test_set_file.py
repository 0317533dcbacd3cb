"""What a search leaves can be loaded by the launcher, and says where it comes from."""

from types import SimpleNamespace

from flexjax.hardware import xla_flags
from flexjax.lab import Cost
from flexjax.tune import Factor, Finding, Trial, set_file

FACTORS = [Factor("xla_a", (True,), "Does a."), Factor("xla_b", (512,), "Does b.")]
EVALUATOR = SimpleNamespace(kind="measured", unit="ms a step")
ABOUT = dict(what="The decoding step of m, float32", where="2 × a CPU, jaxlib 1", date="2026-01-02")


def trial(cost, **candidate):
    return Trial("alone", candidate, cost, "" if cost else "refused: No such compile option")


GOOD = Cost(0.9, 0.88, 0.93, 9.0, 10.0, True)
TRIALS = (
    trial(GOOD, xla_a=True),
    trial(Cost(0.95, 0.9, 0.99, 9.5, 10.0, True), xla_b=512),
    trial(Cost(0.5, 0.5, 0.5, 5.0, 10.0, False), xla_fast=True),
    trial(None, xla_gone=1),
    trial(GOOD, **{"op.pallas_tpu.BLOCK": 64}),
)


def test_the_set_is_read_back_with_the_evidence_as_its_reasons():
    best = {"xla_a": True, "xla_b": 512, "op.pallas_tpu.BLOCK": 64}
    text = set_file(Finding(best, Cost(0.85, 0.84, 0.86, 8.5, 10.0, True), TRIALS), FACTORS, EVALUATOR, **ABOUT)
    flags = xla_flags.parse(text, "set")
    assert [str(flag) for flag in flags] == ["--xla_a=true", "--xla_b=512"]
    assert flags[0].reason == "Does a. Alone 0.900 (0.880–0.930) of the time without it (measured)."
    assert "measured 2026-01-02:\n# 2 × a CPU, jaxlib 1.\n" in text
    assert "# All together: 10 → 8.5 ms a step, 0.850 (0.840–0.860)." in text
    assert "# With these block sizes, to be written into the kernel: op.pallas_tpu.BLOCK=64" in text


def test_what_did_not_pay_is_evidence_too():
    text = set_file(Finding({}, None, TRIALS), FACTORS, EVALUATOR, **ABOUT)
    assert xla_flags.parse(text, "set") == ()
    assert "Nothing that was tried pays: this set is empty." in text
    assert "#   xla_fast=true: 0.500, changes results" in text
    assert "#   xla_gone=1: refused: No such compile option" in text


def test_figures_without_spread_show_none():
    cost = Cost(0.9, 0.9, 0.9, 9.0, 10.0, None)
    evaluator = SimpleNamespace(kind="compiled", unit="ms a step")
    text = set_file(Finding({"xla_a": 1}, cost, (trial(cost, xla_a=1),)), FACTORS, evaluator, **ABOUT)
    assert "compiled 2026-01-02" in text and "never a speed seen" in text
    assert "–" not in text and "percentile" not in text
