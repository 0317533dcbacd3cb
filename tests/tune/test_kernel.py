"""A kernel's scheduled instructions, read from the compiler's listing and from a real compile."""

import pytest

from flexjax.hardware import chips, topology
from flexjax.kernels.ragged_paged_attention import pallas_tpu
from flexjax.tune import Attention, CompiledKernel
from flexjax.tune.blocks import block_sizes
from flexjax.tune.kernel import by_depth

NAME = "ragged_paged_attention.pallas_tpu.{}".format
LISTING = """\
= control target key start
LH: loop header

     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s2 = sadd.s32 1, %s1 }
   0x2   : > { %p0 = scmp.ge.s32.totalorder %s2, 4  ;;  %9 = sbr.rel (%p0) target = $region2 }
   0x3   :  {}
   0x4   :  {} /* End region 1 */
   0x5 LB: >> { %v1 = vld [vmem:[%s3] sm:$0xff] }
   0x6   : >> { %8 = sbr.rel (!%p1) target = $region3 }
   0x7   : > { %7 = sbr.rel (!%p0) target = $region4 }
     hlo: ragged_paged_attention.1
   0x8   :  { %10 = vsyncpa [#allocation4], 1 }
"""


def test_bundles_count_where_they_stand_and_shadows_of_branches_with_them():
    listing = LISTING.replace(":  {} /* End region 1 */", ":  {}")
    assert by_depth(listing) == [2, 5, 2]
    assert by_depth("") == []


def test_turns_follow_the_block_sizes():
    attention = Attention("v5e", batch=32, context=2048, num_heads=8, num_kv_heads=2, head_dim=128, page_size=128)
    assert attention.read_bytes == 32 * 2048 * 2 * 2 * 128 * 2
    with block_sizes({NAME("BLOCK_KV"): 1024, NAME("BLOCK_DECODES"): 16, NAME("MAX_BLOCK_PAGES"): 16}):
        assert attention.turns == [1, 2, 32, 64]
    with block_sizes({NAME("BLOCK_KV"): 1024, NAME("BLOCK_DECODES"): 64, NAME("MAX_BLOCK_PAGES"): 2}):
        assert attention.turns == [1, 32, 32 * 8]


@pytest.mark.tpu
@pytest.mark.skipif(topology.missing(chips.find("v5e")) is not None, reason=str(topology.missing(chips.find("v5e"))))
def test_small_blocks_cost_turns():
    evaluate = CompiledKernel(Attention("v5e", 16, 1024, num_heads=4, num_kv_heads=1, head_dim=128, page_size=128))
    cost = evaluate({NAME("BLOCK_KV"): pallas_tpu.BLOCK_KV // 8})
    assert cost.ratio > 1.2
    assert cost.default_value >= 1e6 * 16 * 1024 * 2 * 128 * 2 / 819e9
