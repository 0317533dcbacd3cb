"""Block sizes by chip, and the loops of a grid."""

import jax
import pytest

from flexjax.hardware import chips
from flexjax.kernels.recurrent import Batch
from flexjax.kernels.recurrent_tpu import per_turn, segments_of
from flexjax.kernels.tuning import ByChip, Loop, grid, on_chip


def test_a_size_is_that_of_the_chip_in_use():
    size = ByChip(8, {"v6e": 16})
    assert on_chip(size) == 8 and on_chip(3) == 3  # A CPU is none of them.
    for chip, expected in (("v5e", 8), ("v6e", 16)):
        device = jax.sharding.AbstractDevice(chips.find(chip).device_kinds[0], num_cores=1, platform="tpu")
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)):
            assert on_chip(size) == expected


def test_a_chip_that_is_not_known_has_no_size():
    with pytest.raises(ValueError, match="No chip is called 'v9'"):
        ByChip(8, {"v9": 16})


def test_a_grid_of_one_step_is_no_loop():
    assert grid(1, Loop(4)) == (Loop(4),)
    assert grid(2, Loop(4)) == (Loop(2, (Loop(4),)),)


@pytest.mark.parametrize(
    ("rows", "segments"),
    [((20,), [8, 8, 4]), ((1, 1, 1), [1, 1, 1]), ((3, 7, 6), [3, 5, 2, 6]), ((8, 8), [8, 8])],
)
def test_segments_end_where_blocks_and_sequences_do(rows, segments):
    assert segments_of(Batch(rows), 8) == segments


def test_registers_are_unrolled_without_a_rest():
    """Of Mamba-2 130M, 2.7B and 8B; a rest crashes the compiler."""
    assert [per_turn(n, 40) for n in (12, 40, 64, 41)] == [12, 40, 32, 1]
