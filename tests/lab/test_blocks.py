"""Block sizes: set while a program is traced, and only then."""

import pytest

from flexjax.kernels.ragged_paged_attention import pallas_tpu
from flexjax.kernels.tuning import on_chip
from flexjax.lab.blocks import block_sizes, find

NAME = "ragged_paged_attention.pallas_tpu.BLOCK_DECODES"


def test_a_size_holds_within_and_not_after():
    before = pallas_tpu.BLOCK_DECODES
    with block_sizes({NAME: before // 2, "xla_some_flag": True}):
        assert pallas_tpu.BLOCK_DECODES == before // 2
    assert pallas_tpu.BLOCK_DECODES == before


def test_a_size_takes_the_place_of_one_by_chip():
    before = pallas_tpu.BLOCK_KV
    with block_sizes({"ragged_paged_attention.pallas_tpu.BLOCK_KV": 512}):
        assert on_chip(pallas_tpu.BLOCK_KV) == 512
    assert pallas_tpu.BLOCK_KV is before


def test_it_is_set_back_after_an_error():
    before = pallas_tpu.BLOCK_DECODES
    with pytest.raises(RuntimeError), block_sizes({NAME: 2}):
        raise RuntimeError
    assert pallas_tpu.BLOCK_DECODES == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ragged_paged_attention.pallas_tpu.BLOCK_K", "has no block size 'BLOCK_K'; it has BLOCK_KV"),
        ("ragged_paged_attention.pallas_tpu.kernel", "has no block size 'kernel'"),
        ("ragged_paged_attention.pallas.BLOCK_KV", "there is no kernel 'ragged_paged_attention.pallas'"),
        ("attention.pallas_tpu.BLOCK_KV", "there is no kernel 'attention.pallas_tpu'"),
        ("registry.ENVIRONMENT", "there is no kernel 'registry'"),
    ],
)
def test_a_size_that_is_not_there_is_refused(name, says):
    with pytest.raises(ValueError, match=says):
        find(name)


@pytest.mark.parametrize("value", [0, 1.5, True, "64"])
def test_a_size_is_a_positive_whole_number(value):
    before = pallas_tpu.BLOCK_DECODES
    with pytest.raises(ValueError, match="positive whole number"), block_sizes({NAME: value}):
        pass
    assert pallas_tpu.BLOCK_DECODES == before
