"""The TPU kernel as the chips' own compiler takes it, and what it refuses. Its values: test_base.py."""

import dataclasses
import functools

import pytest
from described import TPUS, compiled

from flexjax.hardware import aot, program
from flexjax.kernels.short_convolution import pallas_tpu, short_convolution
from flexjax.kernels.short_convolution.arg_specs import ARG_SPECS

SPEC = ARG_SPECS["mamba2_2_7b_decode"]


@pytest.mark.tpu
@pytest.mark.parametrize("chip", TPUS)
def test_it_compiles_updates_states_in_place_and_counts_what_it_moves(chip: str):
    x, weight, bias, states, *batch = SPEC.arguments()
    # More slots than fit on the chip, beside which everything else is small.
    pool = states.repeat(100, axis=0)
    # The op itself: for a described TPU it takes this body.
    op = functools.partial(short_convolution, **SPEC.options)
    made = compiled(chip, op, x, weight, bias, pool, *batch, donate=3)
    kernel = next(op for op in program.read(made.as_text() or "").ops if op.label == "short_convolution")
    assert 0 < kernel.hbm_bytes <= pallas_tpu._cost(x, weight, batch[1]).bytes_accessed
    memory = made.memory_analysis()
    assert memory is not None and memory.alias_size_in_bytes >= pool.nbytes
    assert aot.footprint_of(made).temporaries < 0.01 * pool.nbytes


def test_the_declared_cost_is_what_must_be_moved():
    spec = dataclasses.replace(SPEC, batch=ARG_SPECS["mamba2_2_7b_prefill"].batch)
    x, weight, _, _, _, slots, _ = spec.arguments()
    assert pallas_tpu._cost(x, weight, slots).bytes_accessed == spec.moved_bytes


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"D": 1500}, "1500 channels; a multiple of 128"),
        ({"W": 9}, "9 inputs are convolved; up to 8"),
        ({"dtype": "float16"}, "x is float16"),
    ],
)
def test_what_it_cannot_do_it_says(change: dict, reason: str):
    spec = dataclasses.replace(SPEC, **change)
    with pytest.raises(NotImplementedError, match=reason):
        short_convolution(*spec.arguments(), body="pallas_tpu", **spec.options)
