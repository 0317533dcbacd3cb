import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.kernels.case import Case
from flexjax.lab import BODY, Item, do, gpu_ops, work
from flexjax.lab.plan import specs


@pytest.mark.parametrize("op", ["lora_matmul", "matmul"])
def test_values_are_held_against_the_formula(op):
    found = [
        do(Item("value", op, shape, ("xla", "base")), rounds=1, round_s=0.001)[0]
        for shape in list(specs(op, "ARG_SPECS"))[:3]
    ]
    assert all(row.outcome == "ok" and row.error is not None for row in found)
    assert max(row.error or 0.0 for row in found) > 0


def test_a_body_that_does_not_serve_says_so():
    (row,) = do(Item("value", "matmul", "bfloat16_decode_1", (BODY, "base")), rounds=1, round_s=0.001)
    assert row.outcome == "refused" and row.note and row.error is None


@pytest.mark.parametrize("worse", [0.03, float("nan")])
def test_a_value_too_far_from_the_right_one_is_wrong(worse, monkeypatch):
    monkeypatch.setattr(work, "error_of", lambda got, want: worse)
    (row,) = do(Item("value", "lora_matmul", "shipped_decode_1", ("xla", "base")), rounds=1, round_s=0.001)
    assert row.outcome == "wrong"


@pytest.mark.parametrize(
    ("got", "error"),
    [
        ([1.0, -np.inf, 4.0], 0.0),
        ([1.5, -np.inf, 4.0], 0.125),
        ([1.0, 0.0, 4.0], np.inf),
        ([np.nan, -np.inf, 4.0], np.nan),
    ],
)
def test_errors_are_of_the_largest_finite_value(got, error):
    np.testing.assert_equal(work.error_of(jnp.asarray(got), jnp.asarray([1.0, -np.inf, 4.0])), error)


ITEM = Item("times", "matmul", "llama3_8b_int8_decode_8", (BODY, "xla", "worse", "other"))


def refuse(x, y):
    raise NotImplementedError("not here")


def fail(x, y):
    raise RuntimeError("the compiler gave up")


def make():
    return jnp.zeros((8, 8)), jnp.ones((8, 8))


@pytest.fixture
def fakes(monkeypatch):
    steps = {BODY: lambda x, y: x + y, "xla": refuse, "worse": fail, "other": lambda x, y: x - y}
    fake = lambda body: Case(ITEM.op, ITEM.shape, body, make, steps[body], 512.0, 64.0, "float32", work.LAYERS)
    monkeypatch.setattr(work, "cases", lambda item: [fake(body) for body in item.bodies])


def test_one_failing_body_stops_no_other(fakes):
    rows = do(ITEM, rounds=2, round_s=0.001)
    assert [(row.body, row.outcome, row.note) for row in rows] == [
        (BODY, "ok", ""),
        ("xla", "refused", "not here"),
        ("worse", "failed", "RuntimeError: the compiler gave up"),
        ("other", "ok", ""),
    ]
    ours, *_, other = rows
    for row in (ours, other):
        assert 0 < row.low_s <= row.median_s <= row.high_s and (row.moved_bytes, row.operations) == (512.0, 64.0)
    assert ours.goal is not None and other.goal is None
    assert rows[1].median_s is rows[2].median_s is None


def test_a_body_that_ruins_the_process_ends_the_call(fakes, monkeypatch):
    monkeypatch.setattr(work, "healthy", lambda: fail(0, 0))
    with pytest.raises(RuntimeError, match="the compiler gave up"):
        do(ITEM, rounds=2, round_s=0.001)


@pytest.mark.parametrize("op", gpu_ops())
def test_every_op_is_timed_in_steps_of_as_many_layers(op):
    shape = next(iter(specs(op, "SERVING_SPECS")))
    ours, xla = work.cases(Item("times", op, shape, (BODY, "xla")))
    assert (ours.op, ours.shape, ours.body, xla.body) == (op, shape, BODY, "xla")
    assert ours.calls == xla.calls == work.LAYERS


def test_bodies_and_peers_are_made_by_their_own(monkeypatch):
    spec = specs("matmul", "ARG_SPECS")["int8_odd_sizes"]
    monkeypatch.setattr(work, "specs", lambda op, which: {"small": spec})
    item = Item("times", "matmul", "small", ("xla", "tokamax_triton"))
    ours, theirs = work.cases(item)
    assert (ours.body, theirs.body, ours.calls, theirs.calls) == ("xla", "tokamax_triton", work.LAYERS, work.LAYERS)
    assert len(theirs.make()) == 3 and len(ours.make()) == 2
    ours, theirs = do(item, rounds=1, round_s=0.001)
    assert ours.outcome == "ok" and ours.median_s
    assert theirs.outcome in ("refused", "failed") and theirs.note  # It is not installed, or has no CPU.
