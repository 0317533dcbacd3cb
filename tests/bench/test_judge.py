"""The sides here are mostly toys that continue a text by a rule, so that it is known what each must be judged as."""

import dataclasses
import hashlib
import math
import queue
import threading
import time
import types

import pytest

from flexjax.bench import ask
from flexjax.bench.events import Recorder
from flexjax.bench.judge import QualityConfig, judge_sides, under_load
from flexjax.bench.openai_chunks import UNKNOWN_TOKEN
from flexjax.bench.result import StartUp
from flexjax.bench.stock import StockConfig, StockTarget
from flexjax.bench.workload import Item, Lengths, WorkloadConfig, build_workload
from flexjax.engine.request import SamplingParams, TokenEvent
from flexjax.refusal import Unsupported

MOST = 64  # Requests in a toy's batch.


class Toy:
    """A side whose next token hangs on all tokens before it; each gets the log-probability `told(token)`.

    - noise: at so many of all places it says another token, others with each size of the batch, as a side does whose
      bits depend on the batch: then all that follows is another answer.
    - corrupt_above: in batches of more requests than that every other token is wrong.
    """

    def __init__(self, name, *, noise=0.0, corrupt_above=MOST, told=lambda token: -1.0 - token % 7, told_tokens=True):
        self.name, self.noise, self.corrupt_above, self.told = name, noise, corrupt_above, told
        self.told_tokens = told_tokens
        self.forgets_forced = self.forgets_log_probs = False
        self.batches: list[int] = []
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self):
        self._thread.start()
        return StartUp(0.0, 0.0)

    def stop(self):
        self._queue.put(None)
        self._thread.join()

    def submit(self, request):
        self._queue.put([request])

    def submit_together(self, requests):
        self._queue.put(list(requests))

    def _serve(self):
        while (batch := self._queue.get()) is not None:
            while len(batch) < MOST and not self._queue.empty() and (more := self._queue.get_nowait()):
                batch = [*batch, *more]
            self.batches.append(len(batch))
            for request in batch:
                self._answer(request, len(batch))

    def _answer(self, request, size):
        tokens = []
        for place in range(request.params.max_tokens):
            said = (*request.prompt_token_ids, *tokens)
            token = _hash(said) % 97
            if _hash((*said, size, self.name)) % 1000 < 1000 * self.noise:
                token += 1
            if size > self.corrupt_above and place % 2:
                token += 100
            if place < len(request.forced) and not self.forgets_forced:
                token = request.forced[place]
            tokens.append(token)
        shown = tuple(tokens) if self.told_tokens else (UNKNOWN_TOKEN,) * len(tokens)
        wanted = request.params.logprobs is not None and not self.forgets_log_probs
        logs = tuple({t: self.told(t)} for t in tokens) if wanted else ()
        text = " ".join(f"w{t}" for t in tokens)
        half = len(tokens) // 2
        tell = lambda kind, **fields: request.listener(TokenEvent(kind, request.id, 0.0, **fields))
        tell("token", token_ids=shown[:half], logprobs=logs[:half])
        tell("token", token_ids=shown[half:], logprobs=logs[half:], text=text)
        tell("done", finish_reason="length")


def _hash(tokens) -> int:
    return int.from_bytes(hashlib.blake2b(repr(tokens).encode(), digest_size=4).digest())


@pytest.fixture
def toy():
    started = []

    def make(name, **options):
        found = Toy(name, **options)
        found.start()
        started.append(found)
        return found

    yield make
    for each in started:
        each.stop()


ITEMS = tuple(Item((i, i + 1), SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)) for i in range(128))
NO_TEXT = QualityConfig(text_bytes=0)
LIMITS = dict(max_context=96, max_prompt=40, max_output=24)


def never():
    raise AssertionError("the stock side is the reference already")


def judged(targets, tokenizer, config=NO_TEXT, items=ITEMS, reference=lambda: Toy("reference")):
    return judge_sides(targets, items, tokenizer, config, reference, **LIMITS)


def loaded(target, scenario, batch, items=ITEMS):
    """A run that has the items answered in batches of so many."""
    recorder = Recorder()
    requests = [recorder.open(index, item, issued=0.0)[0] for index, item in enumerate(items)]
    for first in range(0, len(requests), batch):
        done = recorder.done + len(requests[first : first + batch])
        target.submit_together(requests[first : first + batch])
        while recorder.done < done:
            time.sleep(1e-4)
    return types.SimpleNamespace(side=target.name, scenario=scenario, answers=recorder.answers())


def value(found, side, measure):
    (one,) = [q for q in found if (q.side, q.measure) == (side, measure)]
    return one


def test_the_reference_answers_all_at_once_and_each_side_alone(toy, byte_tokenizer):
    sides = [toy("a"), toy("b", noise=0.03)]
    made = []

    def reference():
        made.append(Toy("reference"))
        return made[0]

    found = judged(sides, byte_tokenizer, reference=reference)
    assert len(found.reference) == 128 and max(made[0].batches) > 1 and not made[0]._thread.is_alive()
    assert all(side.batches == [1] * 64 for side in sides)
    assert {name: len(answers) for name, answers in found.alone.items()} == {"a": 64, "b": 64}
    assert [q.measure for q in found.quality] == ["rouge_l", "matching_tokens"] * 2
    exact, noisy = (value(found.quality, side, "rouge_l") for side in "ab")
    assert (exact.value, exact.interval.low, exact.interval.high, exact.ratio) == (100, 100, 100, None)
    assert noisy.interval.low < noisy.value < noisy.interval.high < 100 and noisy.basis == "64 answers"
    assert noisy.ratio == pytest.approx(noisy.value / 100) and noisy.ratio in noisy.ratio_interval
    same = value(found.quality, "b", "matching_tokens")
    assert same.value in same.interval and same.value < 100 and same.ratio is None


def test_bits_per_byte_come_of_forced_tokens_in_large_batches(toy, byte_tokenizer):
    config = QualityConfig(text_bytes=2000, prompts=0)
    nats = lambda token: 1.0 + token % 7
    a, b = toy("a", noise=0.5), toy("b", told=lambda token: -1.02 * nats(token))
    found = judged([a, b], byte_tokenizer, config)
    assert found.reference == () and found.alone == {"a": (), "b": ()} and not found.notes
    first, second = found.quality
    assert (first.measure, first.unit, first.better, first.basis) == (
        "bits_per_byte",
        "bits/byte",
        "lower",
        "2,016 bytes",  # The first 84 pieces of 24 tokens, each of which is a byte.
    )
    assert 1 / math.log(2) < first.value < 7 / math.log(2) and first.value in first.interval
    assert second.value == pytest.approx(1.02 * first.value) and second.ratio == pytest.approx(1 / 1.02)
    assert second.ratio_interval.low == pytest.approx(second.ratio) == second.ratio_interval.high
    assert max(a.batches) > 16


def test_context_and_continuation_are_what_every_side_can_take(toy, byte_tokenizer, monkeypatch):
    seen = []

    def log_probs(target, windows):
        seen.extend(windows)
        return [[-1.0] * len(w.continuation) for w in windows]

    monkeypatch.setattr(ask, "log_probs", log_probs)
    config = QualityConfig(text_bytes=300, prompts=0)
    judge_sides([toy("a")], (), byte_tokenizer, config, never, max_context=50, max_prompt=40, max_output=24)
    assert {(len(w.context), len(w.continuation)) for w in seen} == {(40, 9)}  # One token is left for an echo.
    huge = QualityConfig(text_bytes=300, prompts=0, context_tokens=10**6)
    none = judge_sides([], (), byte_tokenizer, huge, never, max_context=10**7, max_prompt=10**7, max_output=24)
    assert none.quality == () and "no held-out document has more than 1000000 tokens" in none.notes[0]


def test_a_side_that_does_not_obey_or_does_not_tell_is_a_fault(toy, byte_tokenizer):
    config = QualityConfig(text_bytes=200, prompts=0)
    side = toy("a")
    side.forgets_forced = True
    with pytest.raises(RuntimeError, match="a gave other tokens than those forced on it in 9 of 9 windows"):
        judged([side], byte_tokenizer, config)
    side.forgets_forced, side.forgets_log_probs = False, True
    with pytest.raises(RuntimeError, match="a did not tell the log-probabilities of its tokens in 9 of 9 windows"):
        judged([side], byte_tokenizer, config)
    with pytest.raises(RuntimeError, match="b: 216 log-probabilities are not finite"):
        judged([toy("b", told=lambda token: -math.inf)], byte_tokenizer, config)


class Server(Toy):
    """It chooses its own tokens and tells none of them; where it echoes, each token has the probability 1/2."""

    echoes = True

    def continuation_logprobs(self, windows):
        if not self.echoes:
            raise Unsupported("the server does not echo")
        return [[-math.log(2)] * len(window.continuation) for window in windows]


def test_a_server_echoes_or_is_left_out_with_a_note(toy, byte_tokenizer):
    server = Server("server", told_tokens=False)
    server.start()
    config = QualityConfig(text_bytes=200, alone=3)
    found = judged([server, toy("b")], byte_tokenizer, config)
    assert value(found.quality, "server", "bits_per_byte").value == pytest.approx(1.0)
    assert value(found.quality, "b", "bits_per_byte").ratio == pytest.approx(
        1 / value(found.quality, "b", "bits_per_byte").value
    )
    # Tokens that nobody told are not compared.
    assert {q.measure for q in found.quality if q.side == "server"} == {"bits_per_byte", "rouge_l"}
    server.echoes = False
    found = judged([server, toy("b")], byte_tokenizer, config)
    assert found.notes == ("server: bits per byte are left out: the server does not echo",)
    assert [q.side for q in found.quality if q.measure == "bits_per_byte"] == ["b"]
    assert value(found.quality, "b", "bits_per_byte").ratio is None
    server.stop()


def test_a_side_that_corrupts_tokens_in_large_batches_alone_is_not_trusted(toy, byte_tokenizer):
    good, bad = toy("good"), toy("bad", corrupt_above=32)
    judgement = judged([good, bad], byte_tokenizer)
    assert value(judgement.quality, "bad", "rouge_l").value == 100  # In quiet nothing shows.
    small = [loaded(side, "Server", 32) for side in (good, bad)]
    assert under_load(judgement, small)[1] == ()
    runs = [*small, *(loaded(side, "Offline", 64) for side in (good, bad))]
    found, reasons = under_load(judgement, runs)
    assert len(reasons) == 1 and reasons[0].startswith("bad, Offline: answers are corrupted under load: to 64 prompts")
    assert "given one at a time; up to 1 is allowed" in reasons[0]
    assert [q.measure for q in found] == ["rouge_l_under_load", "matching_tokens_under_load"] * 2
    assert value(found, "good", "rouge_l_under_load").value == 100
    worse = value(found, "bad", "rouge_l_under_load")
    assert worse.value < 85 and worse.ratio == pytest.approx(worse.value / 100)
    assert worse.basis == "256 answers to 128 prompts"
    assert 50 < value(found, "bad", "matching_tokens_under_load").value < 60  # All of one half, and few of the other.


@pytest.mark.parametrize("noise", [0.005, 0.03, 0.1])
def test_a_side_whose_bits_depend_on_the_batch_is_trusted(toy, byte_tokenizer, noise):
    """As bfloat16: many answers differ from float32's, and others with each batch, none of them for the worse."""
    exact, side = toy("float32"), toy("bfloat16", noise=noise)
    judgement = judged([exact, side], byte_tokenizer)
    runs = [loaded(side, f"load {batch}", batch) for batch in (2, 16, 33, 64)]
    found, reasons = under_load(judgement, runs)
    assert reasons == ()
    quiet, busy = value(judgement.quality, "bfloat16", "rouge_l"), value(found, "bfloat16", "rouge_l_under_load")
    assert busy.value < 100 and busy.value == pytest.approx(quiet.value, abs=8)
    assert busy.basis == "512 answers to 128 prompts"
    # The same answers four times over are no four texts: nothing is surer for it.
    once, again = (value(under_load(judgement, n * runs[:1])[0], "bfloat16", "rouge_l_under_load") for n in (1, 4))
    assert again.interval == once.interval and once.basis == "128 answers"


def test_a_noisy_side_that_corrupts_is_still_found(toy, byte_tokenizer):
    side = toy("both", noise=0.03, corrupt_above=32)
    judgement = judged([side], byte_tokenizer)
    assert len(under_load(judgement, [loaded(side, "Offline", 64), loaded(side, "Server", 8)])[1]) == 1


def test_what_cannot_be_compared_under_load_is_not(toy, byte_tokenizer):
    side = toy("a", corrupt_above=0)
    run = loaded(side, "Offline", 64)
    assert under_load(judged([side], byte_tokenizer, QualityConfig(0, prompts=0)), [run]) == ((), ())
    sampled = [dataclasses.replace(i, params=dataclasses.replace(i.params, temperature=1.0)) for i in ITEMS]
    assert under_load(judged([side], byte_tokenizer, items=sampled), [run]) == ((), ())
    # Only the items that the reference answered; of four, chance alone could make the loss sure.
    few = judged([side], byte_tokenizer, QualityConfig(0, prompts=4))
    found, reasons = under_load(few, [run])
    assert value(found, "a", "rouge_l_under_load").basis == "4 answers" and reasons == ()


def test_a_failed_answer_is_an_error(fake_target, items, monkeypatch):
    with pytest.raises(RuntimeError, match="b could not answer: out of luck"):
        ask.answers(fake_target("b", fail=True), items[:4])
    monkeypatch.setattr(ask, "WAIT_S", 0.2)
    with pytest.raises(RuntimeError, match=r"c gave no answer within 0\.2 s"):
        ask.answers_alone(fake_target("c", never_done=True), items[:4])


def test_nothing_asked_nothing_judged(fake_target, items, byte_tokenizer):
    found = judge_sides([fake_target()], items, byte_tokenizer, QualityConfig(0, prompts=0), never, **LIMITS)
    assert (found.quality, found.reference, found.notes, found.sides) == ((), (), (), ("fake",))
    for wrong in (dict(prompts=-1), dict(alone=-1), dict(text_bytes=-1), dict(context_tokens=0)):
        with pytest.raises(ValueError, match="counts of at least 0"):
            QualityConfig(**wrong)


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


def test_the_float32_stock_side_is_the_reference(stock, fake_target, questions, byte_tokenizer):
    found = judge_sides([fake_target("b"), stock], questions, byte_tokenizer, NO_TEXT, never, **LIMITS)
    assert value(found.quality, "stock", "rouge_l").value == value(found.quality, "stock", "matching_tokens").value
    assert value(found.quality, "stock", "rouge_l").value == 100
    assert value(found.quality, "b", "matching_tokens").value < 50
    assert [len(answer.token_ids) for answer in found.reference] == [item.n_expected for item in questions]
