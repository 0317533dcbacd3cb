import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.jobs.bench_kernels import timed_ops
from flexjax.kernels.case import can_serve


def refuse(state):
    raise NotImplementedError("not this one")


def test_a_refusal_is_told_and_nothing_else():
    assert can_serve(lambda x: x + 1.0, (jnp.zeros(3),)) is None
    assert can_serve(refuse, (jnp.zeros(3),)) == "not this one"
    with pytest.raises(TypeError):
        can_serve(lambda x: x + "1", (jnp.zeros(3),))


@pytest.mark.parametrize("op", timed_ops())
def test_every_op_gives_cases_whose_result_is_their_next_argument(op):
    cases = list(importlib.import_module(f"flexjax.kernels.{op}.bench").cases())
    assert len({(c.shape, c.body) for c in cases}) == len(cases) > 0
    assert {c.op for c in cases} == {op}
    for case in cases:
        assert case.moved_bytes > 0 and case.operations >= 0 and case.calls >= 1
    smallest = min(cases, key=lambda c: c.moved_bytes + c.operations)
    state, *constants = jax.eval_shape(smallest.make)
    if can_serve(smallest.step, (state, *constants)) is None:
        out = jax.eval_shape(smallest.step, state, *constants)
        like = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        assert like(out) == like(state)


SMALL = {
    "lora_matmul": "shipped_decode_1",
    "matmul": "int8_odd_sizes",
    "ragged_paged_attention": "odd_sizes",
    "rotary": "odd_half",
    "sample_top": "one_row",
    "selective_scan": "odd_sizes",
    "short_convolution": "width_2",
    "ssd": "odd_sizes",
}


@pytest.mark.parametrize("op", SMALL)
def test_serving_shapes_are_timed_by_every_body_and_steps_stay_finite(op: str, monkeypatch: pytest.MonkeyPatch):
    bench = importlib.import_module(f"flexjax.kernels.{op}.bench")
    assert set(bench.SERVING_SPECS) and all(spec.dtype for spec in bench.SERVING_SPECS.values())
    spec = importlib.import_module(f"flexjax.kernels.{op}.arg_specs").ARG_SPECS[SMALL[op]]
    monkeypatch.setattr(bench, "SERVING_SPECS", {"small": spec})
    (case,) = [case for case in bench.cases() if (case.shape, case.body) == ("small", "xla")]
    assert case.op == op
    state, *others = case.make()
    after = jax.jit(case.step)(state, *others)
    finite = lambda x: bool(jnp.all(jnp.isfinite(x) | (x == -np.inf)))  # Logits may be -inf.
    assert all(map(finite, jax.tree.leaves(after)))
