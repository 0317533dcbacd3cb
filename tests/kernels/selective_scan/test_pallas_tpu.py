"""The TPU kernel as the chips' own compiler takes it, and what it refuses. Its values: test_base.py."""

import dataclasses
import functools

import pytest
from described import TPUS, compiled

from flexjax.hardware import aot, program
from flexjax.kernels.selective_scan import pallas_tpu, selective_scan
from flexjax.kernels.selective_scan.arg_specs import ARG_SPECS

SPEC = ARG_SPECS["mamba_130m_mixed"]


@pytest.mark.tpu
@pytest.mark.parametrize("chip", TPUS)
def test_it_compiles_updates_states_in_place_and_counts_what_it_moves(chip: str):
    arguments = SPEC.arguments()
    x, A, B, z, states, slots = (arguments[n] for n in (0, 2, 3, 7, 8, 10))
    # The op itself: for a described TPU it takes this body.
    made = compiled(chip, functools.partial(selective_scan, **SPEC.options), *arguments, donate=8)
    kernel = next(op for op in program.read(made.as_text() or "").ops if op.label == "selective_scan")
    declared = pallas_tpu._cost(x, A, B, z, states, slots).bytes_accessed
    assert 0.8 * declared < kernel.hbm_bytes <= declared  # Less what XLA keeps on the chip.
    memory = made.memory_analysis()
    assert memory is not None and memory.alias_size_in_bytes >= states.nbytes
    assert aot.footprint_of(made).temporaries < states.nbytes  # Rows and parameters; no second pool.


def test_the_declared_cost_is_what_must_be_moved():
    spec = dataclasses.replace(ARG_SPECS["mamba_130m_prefill"], dtype="bfloat16")
    arguments = spec.arguments()
    cost = pallas_tpu._cost(*(arguments[n] for n in (0, 2, 3, 7, 8, 10)))
    fresh_state = arguments[8][0].nbytes  # Declared as read, though nothing is.
    assert 1 <= cost.bytes_accessed / spec.moved_bytes <= 1 + fresh_state / spec.moved_bytes


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"D": 1500}, r"states of \[16, 1500\]; N must be a multiple of 8 and D of 128"),
        ({"N": 12}, r"states of \[12, 1536\]"),
        ({"dtype": "float16"}, "x is float16"),
        ({"state_dtype": "bfloat16"}, "states are bfloat16; .* states of float32"),
    ],
)
def test_what_it_cannot_do_it_says(change: dict, reason: str):
    spec = dataclasses.replace(SPEC, **change)
    with pytest.raises(NotImplementedError, match=reason):
        selective_scan(*spec.arguments(), body="pallas_tpu", **spec.options)
