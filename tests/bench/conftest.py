"""A target that needs no model and breaks promises when asked to; a tiny model for the targets that need one."""

import dataclasses
import itertools
import queue
import threading
import time

import jax.numpy as jnp
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

from flexjax.bench.result import StartUp, StatsSample
from flexjax.bench.target import TargetStats
from flexjax.bench.workload import Item
from flexjax.engine.request import Request, SamplingParams, TokenEvent
from models.transformer import Layer, Rope, TransformerConfig, build, save


@dataclasses.dataclass
class Faults:
    drop_token: bool = False  # Every answer is one token short.
    no_scheduled: bool = False
    done_twice: bool = False
    never_done: bool = False  # From the third request on.
    fail: bool = False  # The third request ends in an error.
    refuse: bool = False  # The third request is refused at the door.
    no_tokens: bool = False  # The third request ends well without a token.


class FakeTarget:
    def __init__(self, name: str = "fake", seconds_per_token: float = 1e-4, **faults: bool):
        self.name = name
        self.faults = Faults(**faults)
        self.seconds_per_token = seconds_per_token
        self.seen: list[Request] = []
        self._queue: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._samples: list[StatsSample] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> StartUp:
        self._thread.start()
        return StartUp(load_s=0.25, compile_s=0.5)

    def submit(self, request: Request) -> None:
        self.seen.append(request)
        if self.faults.refuse and len(self.seen) == 3:
            raise ValueError("the third is not welcome")
        self._queue.put(request)

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def describe(self) -> dict:
        return {"software": "fake"}

    def stats(self) -> TargetStats:
        return TargetStats(tuple(self._samples), host_s=2.0 * len(self._samples))

    def _serve(self) -> None:
        served = 0
        while (request := self._queue.get()) is not None:
            served += 1
            third = served == 3
            tell = lambda kind, r=request, **fields: r.listener(TokenEvent(kind, r.id, time.perf_counter(), **fields))
            if not self.faults.no_scheduled:
                tell("scheduled")
            self._samples.append(StatsSample(time.perf_counter(), 1, self._queue.qsize(), 0.5))
            count = request.params.max_tokens - self.faults.drop_token
            for i in range(0 if self.faults.no_tokens and third else count):
                time.sleep(self.seconds_per_token)
                tell("token", token_ids=(i,))
            if self.faults.never_done and served >= 3:
                continue
            if self.faults.fail and third:
                tell("done", finish_reason="error", error="out of luck")
            else:
                tell("done", finish_reason="length")
            if self.faults.done_twice:
                tell("done", finish_reason="length")


@pytest.fixture
def fake_target():
    """A factory of started fake targets; they are stopped after the test."""
    started = []

    def make(name: str = "fake", **options) -> FakeTarget:
        target = FakeTarget(name, **options)
        target.start()
        started.append(target)
        return target

    yield make
    for target in started:
        target.stop()


@pytest.fixture
def items() -> tuple[Item, ...]:
    """Sixteen prompts of 1..16 tokens with answers of 2..5."""
    return tuple(
        Item(tuple(range(1, n + 2)), SamplingParams(temperature=0, max_tokens=2 + n % 4, ignore_eos=True))
        for n in range(16)
    )


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """One token a byte, and `<eos>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory, byte_tokenizer):
    """A model directory: two random layers over bytes, a context of 96 tokens."""
    directory = tmp_path_factory.mktemp("tiny")
    config = TransformerConfig(
        architecture="LlamaForCausalLM",
        vocab_size=257,
        d_model=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        d_ff=64,
        max_position=96,
        layers=(Layer(rope=Rope()), Layer(rope=Rope())),
        eos_token_id=256,
    )
    save(build(config, dtype=jnp.float32, seed=1), directory)
    byte_tokenizer.save(str(directory / "tokenizer.json"))
    return directory


class Listener:
    """Keeps a request's events; `wait` blocks until it is done."""

    def __init__(self):
        self.events: list[TokenEvent] = []
        self._done = threading.Event()

    def __call__(self, event: TokenEvent) -> None:
        self.events.append(event)
        if event.kind == "done":
            self._done.set()

    def wait(self) -> TokenEvent:
        assert self._done.wait(30), "not done within 30 s"
        return self.events[-1]

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(t for event in self.events for t in event.token_ids)

    @property
    def logprobs(self) -> list[float]:
        """Of the tokens, where the request wants them."""
        return [one[t] for e in self.events for one, t in zip(e.logprobs, e.token_ids, strict=bool(e.logprobs))]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)


@pytest.fixture
def ask():
    """ask(target, prompt, forced=(), **sampling) → the listener of a request just submitted."""
    numbers = itertools.count()

    def make(target, prompt, forced=(), **sampling) -> Listener:
        listener = Listener()
        params = SamplingParams(**dict(temperature=0, max_tokens=8, ignore_eos=True) | sampling)
        request = Request(f"r{next(numbers)}", tuple(prompt), params, forced=tuple(forced), listener=listener)
        target.submit(request)
        return listener

    return make
