import json

import pytest

from flexjax.bench import echo
from flexjax.bench.quality import Window
from flexjax.refusal import Unsupported

WINDOW = Window((5, 6), (7, 8, 9), 3)
LISTED = [None, -0.1, -0.2, -0.3, -0.4]
BY_ID = [
    None,
    *({"1": {"logprob": -9.0}, str(i): {"logprob": x}} for i, x in zip((6, 7, 8, 9), LISTED[1:], strict=True)),
]


def answer(**choice) -> str:
    return json.dumps({"choices": [{"index": 0, "text": "abcdef", **choice}]})


def test_the_prompt_is_echoed_and_one_token_made():
    body = echo.body(WINDOW, "tiny")
    assert body["prompt"] == [5, 6, 7, 8, 9] and body["model"] == "tiny"
    assert (body["max_tokens"], body["echo"], body["logprobs"], body["stream"]) == (1, True, 1, False)


@pytest.mark.parametrize(
    "choice",
    [
        dict(logprobs={"token_logprobs": LISTED}),
        dict(logprobs={"token_logprobs": [*LISTED, -7.0]}),  # With that of the token that was made.
        dict(logprobs=None, prompt_logprobs=BY_ID),
        dict(logprobs={"token_logprobs": []}, prompt_logprobs=BY_ID),  # The one that names the tokens counts.
    ],
)
def test_those_of_the_continuation_are_read(choice):
    assert echo.read(answer(**choice), WINDOW) == [-0.2, -0.3, -0.4]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", "no choices"),
        ("[" * 100_000, "no choices"),
        ('{"choices": []}', "no choices"),
        ('{"choices": ["a"]}', "no choices"),
        ('{"error": "no"}', "no choices: {.error.: .no.}"),
        (answer(), "echoes no log-probabilities"),
        (answer(logprobs={"content": []}), "echoes no log-probabilities"),
        (answer(logprobs={"token_logprobs": [-0.1]}), "each of 5 tokens.*it gave 1"),  # It did not echo.
        (answer(logprobs={"token_logprobs": [*LISTED, -1.0, -1.0]}), "it gave 7"),
        (answer(logprobs={"token_logprobs": [None] * 5}), "is a number; .*null"),
        (answer(logprobs={"token_logprobs": ["x"] * 5}), "is a number"),
        (answer(prompt_logprobs=BY_ID[:4]), "for 5 tokens; it gave 4"),
        (answer(prompt_logprobs=[*BY_ID[:4], {"1": {"logprob": -1.0}}]), "is a number; .*null"),  # Of another token.
        (answer(prompt_logprobs=[*BY_ID[:4], {"9": -1.0}]), "is a number; .*null"),
    ],
)
def test_an_answer_without_them_is_unsupported_and_says_why(said, reason):
    with pytest.raises(Unsupported, match=reason):
        echo.read(said, WINDOW)
