"""A kernel's scheduled instructions, read from the compiler's listing."""

import pytest

from flexjax.kernels.tuning import Loop
from flexjax.lab.listing import Bundles, cycles, read

LISTING = """\
= control target key start
LH: loop header

     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s2 = sadd.s32 1, %s1 }
   0x2   : > { %p0 = scmp.ge.s32.totalorder %s2, 4  ;;  %9 = sbr.rel (%p0) target = $region2 }
   0x3   :  {}
   0x4   :  {} /* End region 1 */
   0x5 LB: >> { %v1 = vld [vmem:[%s3] sm:$0xff] }
   0x6 PF: >> { %8 = sbr.rel (!%p1) target = $region3 }
   0x7 LB: >> { %v1 = vld [vmem:[%s3] sm:$0xff] }
   0x8   : > { %7 = sbr.rel (!%p0) target = $region4 }
     hlo: ragged_paged_attention.1
   0x9   :  { %10 = vsyncpa [#allocation4], 1 }
"""


def test_bundles_count_where_they_stand_and_shadows_of_branches_with_them():
    listing = LISTING.replace(":  {} /* End region 1 */", ":  {}")
    assert read(listing) == Bundles(2, [Bundles(5, [Bundles(2), Bundles(1)])])
    assert str(read(listing)) == "2 bundles [5 bundles [2 bundles] [1 bundles]]"
    assert read("") == Bundles()


def test_cycles_are_those_of_each_loop_by_its_turns():
    assert cycles(read(LISTING.replace(" /* End region 1 */", "")), (Loop(10, (Loop(3), Loop(0.5))),)) == 117
    # "{} /* … */" is an instruction's place, outside the loop.
    assert cycles(read(LISTING), (Loop(10, (Loop(3), Loop(0.5))),)) == pytest.approx(108)


@pytest.mark.parametrize("loops", [(), (Loop(10),), (Loop(10, (Loop(1),)),), (Loop(1), Loop(2))])
def test_other_loops_than_those_known_have_no_cycles(loops):
    assert cycles(read(LISTING), loops) is None
