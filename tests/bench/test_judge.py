import dataclasses

import numpy as np
import pytest

from flexjax.bench.judge import QualityConfig, Scores, answer, judge_sides
from flexjax.bench.openai_chunks import UNKNOWN_TOKEN
from flexjax.bench.stock import StockConfig, StockTarget
from flexjax.bench.workload import Lengths, WorkloadConfig, build_workload


@pytest.fixture(scope="module")
def stock(tiny_directory):
    target = StockTarget(tiny_directory, StockConfig(batch_size=4, max_prompt_tokens=40, max_output_tokens=24))
    target.start()
    yield target
    target.stop()


@pytest.fixture(scope="module")
def questions(byte_tokenizer):
    config = WorkloadConfig(prompts=6, input=Lengths(20, 0.3, 8, 40), output=Lengths(12, 0.3, 4, 24))
    return build_workload(config, byte_tokenizer, max_context=96)


def never():
    raise AssertionError("the stock side is the reference already")


def test_the_float32_stock_side_is_its_own_reference(stock, questions, byte_tokenizer):
    found = judge_sides([stock], questions, byte_tokenizer, QualityConfig(documents=2, document_tokens=48), never, 96)
    values = {q.measure: q.value for q in found}
    assert values["rouge_l"] == values["matching_tokens"] == 100
    # A random model knows nothing: about 8 bits a byte, with one token a byte.
    assert 6 < values["bits_per_byte"] < 20


def test_another_side_is_judged_against_it(stock, fake_target, questions, byte_tokenizer):
    assert not isinstance(fake_target("x"), Scores)
    found = judge_sides([fake_target("b"), stock], questions, byte_tokenizer, QualityConfig(documents=0), never, 96)
    match = {q.side: q.value for q in found if q.measure == "matching_tokens"}
    assert match["stock"] == 100 and match["b"] < 50


def test_without_a_float32_side_one_is_started(tiny_directory, fake_target, questions, byte_tokenizer):
    started = []

    def reference():
        started.append(
            StockTarget(tiny_directory, StockConfig(batch_size=1, max_prompt_tokens=40, max_output_tokens=24))
        )
        return started[0]

    config = QualityConfig(prompts=2, documents=0)
    found = judge_sides([fake_target("b")], questions, byte_tokenizer, config, reference, 96)
    assert {q.side for q in found} == {"b"}
    with pytest.raises(RuntimeError, match="takes no requests"):
        answer(started[0], questions[:1])  # It was stopped again.


def test_scores_do_not_depend_on_padding(stock):
    text = list(range(1, 31))
    whole = stock.score(text)
    assert whole.shape == (30, 257) and whole.dtype == np.float32
    # 30 and 10 tokens are padded to 32 and 16: sums of another order, so float32's last bits may differ.
    np.testing.assert_allclose(stock.score(text[:10]), whole[:10], atol=1e-5)


def test_a_failed_answer_is_an_error(fake_target, items):
    with pytest.raises(RuntimeError, match="could not answer: out of luck"):
        answer(fake_target("b", fail=True), items[:4])


def test_nothing_asked_nothing_judged(fake_target, items, byte_tokenizer):
    assert judge_sides([fake_target()], items, byte_tokenizer, QualityConfig(prompts=0, documents=0), never, 96) == ()
    with pytest.raises(ValueError, match="counts of at least 0"):
        QualityConfig(prompts=-1)


def test_tokens_that_nobody_told_are_not_compared(stock, fake_target, questions, byte_tokenizer, monkeypatch):
    server = fake_target("server")
    whole = server.submit

    def submit(request):
        listener = lambda e: request.listener(dataclasses.replace(e, token_ids=(UNKNOWN_TOKEN,) * len(e.token_ids)))
        whole(dataclasses.replace(request, listener=listener))

    monkeypatch.setattr(server, "submit", submit)
    found = judge_sides([server, stock], questions, byte_tokenizer, QualityConfig(documents=0), never, 96)
    assert {q.measure for q in found if q.side == "server"} == {"rouge_l"}
