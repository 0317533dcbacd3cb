"""The TPU kernel as the chips' own compiler takes it, and what it refuses. Its values: test_base.py."""

import dataclasses
import functools

import pytest
from described import TPUS, compiled

from flexjax.hardware import aot, program
from flexjax.kernels.ssd import pallas_tpu, ssd
from flexjax.kernels.ssd.arg_specs import ARG_SPECS

SPEC = ARG_SPECS["mamba2_130m_mixed"]


@pytest.mark.tpu
@pytest.mark.parametrize("chip", TPUS)
def test_it_compiles_updates_states_in_place_and_counts_what_it_moves(chip: str):
    arguments = SPEC.arguments()
    x, dt, B, states, slots = (arguments[n] for n in (0, 1, 3, 6, 8))
    # The op itself: for a described TPU it takes this body.
    made = compiled(chip, functools.partial(ssd, **SPEC.options), *arguments, donate=6)
    kernel = next(op for op in program.read(made.as_text() or "").ops if op.label == "ssd")
    declared = pallas_tpu._cost(x, dt, B, states, slots, SPEC.batch.max_query_len).bytes_accessed
    assert 0.8 * declared < kernel.hbm_bytes <= declared  # Less what XLA keeps on the chip.
    memory = made.memory_analysis()
    assert memory is not None and memory.alias_size_in_bytes >= states.nbytes
    assert aot.footprint_of(made).temporaries < states.nbytes / len(states)  # Not one state's room, so no second pool.


def test_the_declared_cost_is_what_must_be_moved():
    spec = dataclasses.replace(ARG_SPECS["mamba2_130m_prefill"], dtype="bfloat16")
    arguments = spec.arguments()
    cost = pallas_tpu._cost(*(arguments[n] for n in (0, 1, 3, 6, 8)), max_query_len=140)
    fresh_state = arguments[6][0].nbytes  # Declared as read, though nothing is.
    assert cost.bytes_accessed == spec.moved_bytes + fresh_state


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"H": 24, "P": 48}, "groups of 24 heads of 48 channels; heads must divide 128"),
        ({"H": 6, "G": 2, "P": 64}, "2 groups of 3 heads of 64 channels"),
        ({"G": 2, "N": 64}, "N=64 with 2 groups"),
        ({"dtype": "float16"}, "x is float16"),
        ({"state_dtype": "bfloat16"}, "states are bfloat16; .* states of float32"),
    ],
)
def test_what_it_cannot_do_it_says(change: dict, reason: str):
    spec = dataclasses.replace(SPEC, **change)
    with pytest.raises(NotImplementedError, match=reason):
        ssd(*spec.arguments(), body="pallas_tpu", **spec.options)
