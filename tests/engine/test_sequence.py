"""How long an answer may get, and what says so."""

import pytest

from flexjax.engine.pages import PagePool, PagePools
from flexjax.engine.request import Request, SamplingParams
from flexjax.engine.sequence import output_limit
from flexjax.refusal import Refusal


@pytest.mark.parametrize(
    ("max_tokens", "context", "pages", "expected"),
    [
        (5, 40, 100, (5, "max_tokens")),
        (50, 40, 100, (30, "max_model_len")),
        (30, 40, 100, (30, "max_tokens")),
        (None, 40, 100, (30, "max_model_len")),
        (None, 40, 6, (10, "num_pages")),  # Five pages of four tokens: one is for padding.
        (30, 40, 6, (30, "max_tokens")),  # Asked for: the engine refuses it.
    ],
)
def test_the_nearest_limit_counts(max_tokens, context, pages, expected):
    request = Request("a", tuple(range(10)), SamplingParams(max_tokens=max_tokens))
    assert output_limit(request, context, PagePools([PagePool(pages, page_size=4)])) == expected


def test_min_tokens_that_have_no_room_are_refused():
    request = Request("a", tuple(range(10)), SamplingParams(max_tokens=None, min_tokens=31))
    with pytest.raises(Refusal, match=r"30 tokens do \(max_model_len\), wanted are 31"):
        output_limit(request, 40, PagePools([PagePool(100, page_size=4)]))


def test_a_window_holds_any_length_where_it_fits_the_pool():
    request = Request("a", tuple(range(10)), SamplingParams(max_tokens=None))
    for most, expected in ((4, (90, "max_model_len")), (6, (10, "num_pages")), (None, (10, "num_pages"))):
        pools = PagePools([PagePool(1000, 4), PagePool(6, page_size=4, most=most)])
        assert output_limit(request, 100, pools) == expected
