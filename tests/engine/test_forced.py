"""Forced tokens through the serving steps: what comes back, and what the model says of them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.engine import LLM, Engine, EngineConfig, Request, SamplingParams
from flexjax.engine.request import TokenEvent
from flexjax.refusal import Refusal
from models.transformer import Layer, Rope, TransformerConfig, build

CONFIG = TransformerConfig(
    "LlamaForCausalLM", vocab_size=64, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48,
    max_position=64, layers=(Layer(rope=Rope()),) * 2,
)  # fmt: skip
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
TEXT = tuple(int(i) for i in np.random.default_rng(3).integers(0, 64, 20))


@pytest.fixture(scope="module", params=[dict(decode_steps=1), dict(decode_steps=4), dict(decode_steps=4, num_pages=9)])
def engine(request) -> Engine:
    """The last has pages for two sequences and a half: the others are sent back, and computed anew."""
    shape = dict(dtype="float32", max_num_seqs=4, max_num_batched_tokens=8, max_model_len=40, page_size=8)
    return Engine(build(CONFIG, dtype=jnp.float32), None, EngineConfig(**shape, **request.param))


def answers(engine: Engine, requests: list[Request]) -> dict[str, tuple[list[int], list[float], str]]:
    """Tokens, log-probabilities and the reason of the end, of each request."""
    found: dict[str, tuple[list[int], list[float], list[str]]] = {}

    def listen(event: TokenEvent) -> None:
        tokens, logprobs, ends = found.setdefault(event.request_id, ([], [], []))
        tokens += event.token_ids
        logprobs += [one[token] for one, token in zip(event.logprobs, event.token_ids, strict=bool(event.logprobs))]
        ends += [str(event.finish_reason)] if event.kind == "done" else []

    for request in requests:
        engine.submit(dataclasses.replace(request, listener=listen))
    while engine.step():
        pass
    return {name: (tokens, logprobs, "".join(ends)) for name, (tokens, logprobs, ends) in found.items()}


def scored(engine: Engine, tokens: tuple[int, ...]) -> np.ndarray:
    """The log-probability of each token but the first, by `LLM.score`."""
    logits = LLM(engine).score([tokens])[0].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logprobs[np.arange(len(tokens) - 1), tokens[1:]]


def test_forced_tokens_come_back_with_the_model_s_own_log_probabilities(engine):
    requests = [Request(f"{n}", TEXT[:n], GREEDY, forced=TEXT[n : n + 12]) for n in (1, 3, 5, 8)]
    alone = [answers(engine, [request])[request.id] for request in requests]
    together = answers(engine, requests)
    for request, (tokens, logprobs, end) in zip(requests, alone, strict=True):
        n = len(request.prompt_token_ids)
        assert tuple(tokens) == TEXT[n : n + 12] and end == "length"
        np.testing.assert_allclose(logprobs, scored(engine, TEXT[: n + 12])[n - 1 :], rtol=0, atol=2e-5)
        assert together[request.id] == (tokens, logprobs, end)  # Bits do not depend on the batch.
    assert (engine.stats.preemptions > 0) == (engine.config.num_pages is not None)


def test_sampled_requests_beside_are_what_they_were(engine):
    others = [
        Request("greedy", TEXT[:4], GREEDY),
        Request("drawn", TEXT[:6], dataclasses.replace(GREEDY, temperature=1.0, seed=5)),
    ]
    before = answers(engine, others)
    beside = answers(engine, [*others, *(Request(f"{n}", TEXT[:n], GREEDY, forced=TEXT[n : n + 12]) for n in (2, 5))])
    assert {name: beside[name] for name in before} == before


def test_after_the_forced_tokens_it_goes_on_by_itself(engine):
    forced = TEXT[4:7]
    tokens, _, _ = answers(engine, [Request("f", TEXT[:4], GREEDY, forced=forced)])["f"]
    longer, _, _ = answers(engine, [Request("l", TEXT[:7], dataclasses.replace(GREEDY, max_tokens=9))])["l"]
    assert tokens == [*forced, *longer]


def test_a_forced_stop_ends_it_unforeseen(engine):
    params = dataclasses.replace(GREEDY, stop_token_ids=(TEXT[9],))
    at = TEXT[4:].index(TEXT[9])
    tokens, _, end = answers(engine, [Request("s", TEXT[:4], params, forced=TEXT[4:12])])["s"]
    assert tuple(tokens) == TEXT[4 : 5 + at] and end == "stop"


def test_rules_do_not_hold_back_a_forced_token(engine):
    rules = dataclasses.replace(GREEDY, min_tokens=12, stop_token_ids=(TEXT[5],), repetition_penalty=50.0)
    tokens, _, _ = answers(engine, [Request("r", TEXT[:4], rules, forced=TEXT[4:8])])["r"]
    assert tuple(tokens[:4]) == TEXT[4:8]


@pytest.mark.parametrize(
    ("change", "message"),
    [(dict(forced=(1, 64)), r"lie in \[0, 64\)"), (dict(forced=(1,), params=SamplingParams(n=2)), "Set n=1")],
)
def test_what_cannot_be_forced_is_refused(engine, change, message):
    with pytest.raises(Refusal, match=message):
        engine.submit(dataclasses.replace(Request("x", TEXT[:2], GREEDY), **change))
