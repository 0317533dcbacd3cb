"""Sampling parameters outside their range are refused with the rule and the value."""

import pytest

from flexjax.engine.request import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -3.0),
        ("max_tokens", 0),
        ("min_tokens", 17),
        ("stop", ("",)),
        ("logprobs", 21),
        ("seed", -1),
        ("top_k", 2**40),
        ("max_tokens", 2**40),
        ("max_tokens", 16.0),
        ("stop_token_ids", (2**40,)),
        ("temperature", 1e-46),
        ("repetition_penalty", 1e-300),
    ],
)
def test_out_of_range(field, value):
    with pytest.raises(ValueError, match=rf"SamplingParams\.{field} must be .*got"):
        SamplingParams(**{field: value})


def test_one_stop_string_may_stand_alone():
    assert SamplingParams(stop="END").stop == ("END",)
