"""Sampling parameters outside their range are refused with the rule and the value; vLLM's spellings are taken."""

import numpy as np
import pytest

from flexjax.engine.request import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -2),
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
        ("seed", -2),
        ("top_k", 2**40),
        ("max_tokens", 2**40),
        ("max_tokens", 16.0),
        ("stop_token_ids", (2**40,)),
        ("temperature", 1e-46),
        ("repetition_penalty", 1e-300),
        ("temperature", None),
        ("top_p", "0.9"),
        ("top_p", 0),
        ("stop", [3]),
        ("stop_token_ids", [1.5]),
        ("stop", 3),
        ("stop_token_ids", 3),
        ("n", 1025),
        ("n", None),
    ],
)
def test_out_of_range(field, value):
    with pytest.raises(ValueError, match=rf"SamplingParams\.{field} must be .*got"):
        SamplingParams(**{field: value})


def test_one_stop_string_may_stand_alone():
    assert SamplingParams(stop="END").stop == ("END",)


@pytest.mark.parametrize(
    ("field", "value", "plain"),
    [
        ("top_k", -1, 0),
        ("seed", -1, None),
        ("stop", None, ()),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop_token_ids", None, ()),
        ("stop_token_ids", np.array([3, 4]), (3, 4)),
        ("max_tokens", None, None),
        ("max_tokens", np.int64(7), 7),
        ("n", np.int32(2), 2),
        ("logprobs", np.uint8(5), 5),
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", 0, 0.0),
    ],
)
def test_values_of_vllm_and_numpy_are_plain_here(field, value, plain):
    got = getattr(SamplingParams(**{field: value}), field)
    assert got == plain and type(got) is type(plain)


def test_without_max_tokens_min_tokens_may_be_large():
    assert SamplingParams(max_tokens=None, min_tokens=10_000).min_tokens == 10_000
