"""The Python face: parity with the published implementations, and errors that help."""

import asyncio
import contextlib
import dataclasses
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from flexjax import LLM, Refusal, SamplingParams
from flexjax.engine import Engine, EngineConfig, QueueFull, Request

GOLDEN = Path(__file__).parents[1] / "models" / "transformer" / "golden"
FAMILIES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
SIZES = dict(max_num_seqs=4, max_num_batched_tokens=33, page_size=8, decode_steps=4, max_model_len=112)
BOS = 155
FEW_STEPS = dict(max_num_seqs=2, max_num_batched_tokens=32, page_size=8, decode_steps=4, max_model_len=112)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> LLM:
    """The golden Llama with a tokenizer of one token a byte, which begins a prompt with BOS, and a chat template."""
    directory = tmp_path_factory.mktemp("llama")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "llama2" / name, directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:155]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "<end>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    source = "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}{{ tail }}"
    fields = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "chat_template": source}
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))
    return LLM.load(directory, dtype="float32", **SIZES)


@pytest.mark.parametrize("family", FAMILIES)
def test_parity_through_the_paged_engine(family):
    """2e-4 is 1e-4 of these logits' range: what reordered float32 sums over a few layers make of it."""
    golden = np.load(GOLDEN / family / "golden.npz")
    count = sum(name.startswith("prompt_") for name in golden)
    prompts = [golden[f"prompt_{i}"].tolist() for i in range(count)]
    llm = LLM.load(GOLDEN / family, dtype="float32", **FEW_STEPS)
    for rows_per_step in (64, 1):  # Prefill at once; token by token, as decoding does.
        for i, logits in enumerate(llm.score(prompts, rows_per_step=rows_per_step)):
            np.testing.assert_allclose(logits, golden[f"logits_{i}"], atol=2e-4, rtol=0)
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=64, ignore_eos=True))
    llm.close()
    for i, output in enumerate(outputs):
        assert list(output.outputs[0].token_ids) == golden[f"greedy_{i}"].tolist()


def test_outputs_come_in_order_with_their_own_params(llama):
    params = [SamplingParams(temperature=0, max_tokens=n) for n in (3, 9, 1)]
    outputs = llama.generate(["abc", [5, 6], "x"], params)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [3, 9, 1]
    assert outputs[0].prompt == "abc" and outputs[1].prompt is None and outputs[1].prompt_token_ids == (5, 6)


def test_one_prompt_is_a_batch_of_one(llama):
    params = SamplingParams(temperature=0, max_tokens=4)
    assert llama.generate("abc", params)[0].outputs == llama.generate(["abc"], params)[0].outputs


@pytest.mark.parametrize(
    "prompts",
    [
        [5, 6],
        (5, 6),
        np.array([5, 6]),
        np.array([[5, 6]], np.uint8),
        [[np.int64(5), 6]],
        [jnp.array([5, 6])],
        {"prompt_token_ids": [5, 6]},
        [{"prompt_token_ids": np.array([5, 6]), "prompt": "told too"}],
    ],
)
def test_token_ids_in_every_form(llama, prompts):
    (output,) = llama.generate(prompts, SamplingParams(temperature=0, max_tokens=1))
    assert output.prompt_token_ids == (5, 6) and output.prompt is None


def test_text_as_vllm_spells_it(llama):
    outputs = llama.generate([{"prompt": "abc"}, "abc"], SamplingParams(temperature=0, max_tokens=1))
    assert outputs[0].prompt_token_ids == outputs[1].prompt_token_ids and outputs[0].prompt == "abc"
    assert llama.generate([]) == []


@pytest.mark.parametrize(
    "prompts", [None, 5.0, b"abc", [None], [[1.5]], [["a"]], [b"abc"], [5, "a"], {"text": "abc"}, {5, 6}, np.array(0.5)]
)
def test_what_is_no_prompt_is_refused(llama, prompts):
    for work in (llama.generate, llama.score):
        with pytest.raises(Refusal, match="Prompt 0 must be text, a list of token ids"):
            work(prompts)


def test_what_is_no_params_and_no_priority_is_refused(llama):
    with pytest.raises(Refusal, match="SamplingParams; got {'max_tokens': 1}"):
        llama.generate("abc", {"max_tokens": 1})
    with pytest.raises(Refusal, match="priority must be a whole number.*got 'x'"):
        llama.generate("abc", priority="x")


def test_stop_string_ends_the_text_before_it(llama):
    whole = llama.generate("abc", SamplingParams(temperature=0, max_tokens=40))[0].outputs[0].text
    stop = whole[5:8]
    got = llama.generate("abc", SamplingParams(temperature=0, max_tokens=40, stop=stop))[0].outputs[0]
    assert got.text == whole[: whole.index(stop)]
    assert got.finish_reason == "stop"


def test_stream_gives_what_generate_gives_and_leaving_early_cancels(llama):
    params = SamplingParams(temperature=0, max_tokens=30)
    whole = llama.generate("abc", params)[0].outputs[0]

    async def collect():
        return [event async for event in llama.stream("abc", params)]

    async def leave():
        async for event in llama.stream("abc", SamplingParams(temperature=0, max_tokens=100)):
            if event.kind == "token":
                break

    events = asyncio.run(collect())
    assert "".join(e.text for e in events) == whole.text
    assert events[0].kind == "scheduled" and events[-1].kind == "done"
    asyncio.run(leave())
    assert llama.generate("abc", params)[0].outputs[0] == whole
    llama.close()
    assert llama.engine.num_open == 0 and llama.engine.pool.num_used == 0


def test_a_conversation_is_answered_as_its_text_is(llama):
    """BOS stands once: the template writes it, and the tokenizer adds none to a chat."""
    params = SamplingParams(temperature=0, max_tokens=6)
    talk = [{"role": "user", "content": "abc"}]
    alone = llama.chat(talk, params)[0]
    assert alone.prompt == "<s>u: abc\n" and alone.prompt_token_ids.count(BOS) == 1
    written = llama.generate("u: abc\n", params)[0]
    assert alone.prompt_token_ids == written.prompt_token_ids and alone.outputs == written.outputs
    both = llama.chat([talk, talk * 2], [params, SamplingParams(max_tokens=2)], chat_template_kwargs={"tail": "a"})
    assert [o.prompt for o in both] == ["<s>u: abc\na", "<s>u: abc\nu: abc\na"]
    assert [len(o.outputs[0].token_ids) for o in both] == [6, 2]
    assert llama.chat(talk, params, chat_template="{{ messages[0].content }}")[0].prompt_token_ids[0] != BOS


def test_without_max_tokens_an_answer_ends_with_the_context(llama):
    answer = llama.generate("abc", SamplingParams(temperature=0, max_tokens=None))[0]
    ended = answer.outputs[0]
    assert len(answer.prompt_token_ids) + len(ended.token_ids) == SIZES["max_model_len"]
    assert (ended.finish_reason, ended.limit) == ("length", "max_model_len")
    cut = llama.generate("abc", SamplingParams(temperature=0, max_tokens=5))[0].outputs[0]
    assert cut.token_ids == ended.token_ids[:5] and cut.limit == "max_tokens"


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["abc", []], "Prompt 1: .*at least one token"),
        (["abc", "x" * 200], "Prompt 1: .*context of 112"),
    ],
)
def test_a_bad_prompt_is_named_before_anything_runs(llama, prompts, message):
    with pytest.raises(ValueError, match=message):
        llama.generate(prompts, SamplingParams(max_tokens=2))
    assert llama.engine.num_open == 0


def test_score_refuses_what_generate_refuses(llama):
    with pytest.raises(ValueError, match=r"Token ids must lie in \[0, 160\).*1000"):
        llama.score([[5, 1000]])


def test_params_must_match_prompts(llama):
    with pytest.raises(ValueError, match="got 2 for 1"):
        llama.generate("abc", [SamplingParams()] * 2)


def test_tokenizer_larger_than_the_weights_is_refused(tmp_path, llama):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "llama2" / name, tmp_path)
    vocabulary = {f"<{i}>": i for i in range(161)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<0>")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"ids up to 160, the weights have 160 rows"):
        LLM.load(tmp_path, dtype="float32")


def test_a_directory_without_a_model_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        LLM.load(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM2"]}')
    with pytest.raises(ValueError, match=r"'LlamaForCausalLM2'; nearest known: LlamaForCausalLM"):
        LLM.load(tmp_path)


def test_text_prompts_need_a_tokenizer():
    llm = LLM.load(GOLDEN / "qwen2", dtype="float32", **SIZES)
    with pytest.raises(ValueError, match=r"no tokenizer\.json; give prompts as token ids"):
        llm.generate("abc")
    with pytest.raises(ValueError, match=r"no tokenizer\.json, which a chat needs"):
        llm.chat([{"role": "user", "content": "abc"}])


SMALL = EngineConfig(
    dtype="float32", max_num_seqs=2, max_num_batched_tokens=8, page_size=4, num_pages=80, decode_steps=2
)
PROMPTS = [tuple(range(i, i + 5)) for i in range(1, 13)]
GREEDY = SamplingParams(temperature=0, max_tokens=5)


class Panic(BaseException):
    """As a panic of the tokenizers library, which is written in Rust: no Exception."""


@pytest.fixture
def make(tiny_model):
    """LLMs that a test may break; each is closed after it."""
    made: list[LLM] = []

    def make(**fields) -> LLM:
        made.append(LLM(Engine(tiny_model, None, dataclasses.replace(SMALL, **fields))))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


@pytest.fixture(scope="module")
def small(tiny_model) -> LLM:
    """One that outlives the tests that use it."""
    return LLM(Engine(tiny_model, None, SMALL))


@pytest.fixture
def slow(small, monkeypatch) -> LLM:
    """The same at 10 ms a step, so that a test comes before the end."""
    run = small.engine.runner.run
    monkeypatch.setattr(small.engine.runner, "run", lambda plan: time.sleep(0.01) or run(plan))
    return small


def within(seconds: float, call):
    """The result of a call that must not wait for ever."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(seconds)


@contextlib.contextmanager
def cancelled_soon(llm: LLM, most: int):
    """Nothing of what was submitted goes on: at most so many tokens are made before nobody is left."""
    before = llm.engine.stats.output_tokens
    yield
    while llm.engine.num_open:
        time.sleep(0.005)
    assert llm.engine.stats.output_tokens - before < most and llm.engine.pool.num_used == 0


def broken(*args):
    raise Panic("device lost")


async def collected(stream) -> list:
    return [event async for event in stream]


@pytest.mark.parametrize("way", ["generate", "stream"])
def test_a_call_raises_when_the_engine_fails(make, monkeypatch, caplog, way):
    llm = make()
    monkeypatch.setattr(llm.engine.runner, "run", broken)
    calls = {
        "generate": lambda: llm.generate(PROMPTS[0], GREEDY),
        "stream": lambda: asyncio.run(collected(llm.stream(PROMPTS[0], GREEDY))),
    }
    for message in ("The engine failed: .*Panic: device lost", "has failed and takes no requests: .*device lost"):
        with pytest.raises(RuntimeError, match=message) as raised:
            within(60, calls[way])
        assert isinstance(raised.value.__cause__, Panic)
    with pytest.raises(RuntimeError, match="has failed"):
        llm.score(PROMPTS[0])
    llm.close()
    llm.close()


def test_a_fault_of_one_request_is_in_its_own_output(small, monkeypatch, caplog):
    whole = small.generate(PROMPTS[:3], GREEDY)
    read = small.engine._read

    def fails_for_one(sequence, new):
        if sequence.request.prompt_token_ids == PROMPTS[1] and len(sequence.tokens) > 6:
            raise Panic("byte index")
        return read(sequence, new)

    monkeypatch.setattr(small.engine, "_read", fails_for_one)
    outputs = within(60, lambda: small.generate(PROMPTS[:3], GREEDY))
    assert outputs[1].outputs[0].finish_reason == "error" and "byte index" in outputs[1].outputs[0].error
    assert [outputs[i].outputs for i in (0, 2)] == [whole[i].outputs for i in (0, 2)]
    assert asyncio.run(collected(small.stream(PROMPTS[1], GREEDY)))[-1].finish_reason == "error"
    assert small.engine.failure is None


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_generate_that_fails_while_submitting_cancels_what_it_submitted(slow, monkeypatch, error):
    submit, submitted = slow.engine.submit, []

    def third_fails(request):
        if len(submitted) == 2:
            raise error
        submitted.append(request.id)
        submit(request)

    monkeypatch.setattr(slow.engine, "submit", third_fails)
    with cancelled_soon(slow, most=100), pytest.raises(type(error)):
        slow.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=100))


def test_an_interrupt_while_generate_waits_cancels_and_goes_on(slow, monkeypatch):
    monkeypatch.setattr("flexjax.engine.llm._Collector.wait", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with cancelled_soon(slow, most=200), pytest.raises(KeyboardInterrupt):
        slow.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=100))


def test_more_prompts_than_the_queue_holds_are_fed_as_it_drains(small, make):
    narrow = make(max_waiting=1)
    params = [dataclasses.replace(GREEDY, n=1 + i % 2) for i in range(len(PROMPTS))]
    most, submit = [0], narrow.engine.submit

    def watched(request):
        submit(request)
        most.append(narrow.engine._num_sequences)

    narrow.engine.submit = watched
    outputs = within(60, lambda: narrow.generate(PROMPTS, params))
    assert [o.outputs for o in outputs] == [o.outputs for o in small.generate(PROMPTS, params)]
    assert max(most) <= 3
    taken = Request("other", PROMPTS[0], SamplingParams(temperature=0, max_tokens=100, n=3))
    narrow.engine.submit(taken)
    with pytest.raises(QueueFull, match="3 are, and this request has 1 more"):
        narrow.generate(PROMPTS[0], GREEDY)
    narrow.engine.cancel("other")


def test_a_drawn_seed_is_reported_and_makes_the_text_again(llama):
    params = SamplingParams(n=2, temperature=1.3, max_tokens=20)
    for output in llama.generate(["abc", "x"], params):
        assert output.outputs[0].seed != output.outputs[1].seed
        for one in output.outputs:
            again = llama.generate([output.prompt], dataclasses.replace(params, seed=one.seed, n=1))[0].outputs[0]
            assert dataclasses.replace(again, index=one.index) == one
    assert llama.generate("abc", SamplingParams(seed=2**32 - 1, n=2, max_tokens=1))[0].outputs[1].seed == 0


def test_priorities_reach_the_scheduler(small, monkeypatch):
    added, add = [], small.engine.scheduler.add
    monkeypatch.setattr(small.engine.scheduler, "add", lambda sequence: added.append(sequence.key[0]) or add(sequence))
    small.generate(PROMPTS[:3], GREEDY, priority=[2, -1, 0])
    small.generate(PROMPTS[:2], GREEDY, priority=7)
    asyncio.run(collected(small.stream(PROMPTS[0], GREEDY, priority=4)))
    assert added == [2, -1, 0, 7, 7, 4]
    with pytest.raises(ValueError, match="Give one priority for all prompts or one for each; got 2 for 3"):
        small.generate(PROMPTS[:3], GREEDY, priority=[1, 2])


def test_two_faces_of_one_engine_do_not_take_the_same_ids(small):
    other = LLM(small.engine)
    params = SamplingParams(temperature=0, max_tokens=40)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda one: one.generate(PROMPTS, params), (small, other))
    assert [o.outputs for o in first] == [o.outputs for o in second]


def test_closing_it_ends_what_runs_in_other_threads(slow):
    async def begin_then_close():
        events = []
        async for event in slow.stream(PROMPTS[0], SamplingParams(temperature=0, max_tokens=100)):
            if event.kind == "scheduled":
                await asyncio.to_thread(slow.close)
            events.append(event)
        return events

    assert asyncio.run(begin_then_close())[-1].finish_reason == "cancelled"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(slow.generate, PROMPTS, SamplingParams(temperature=0, max_tokens=100))
        while not slow.engine.num_open:
            time.sleep(0.005)
        slow.close()
        error = running.exception(60)
        reasons = [] if error else [o.outputs[0].finish_reason for o in running.result()]
        assert "cancelled" in reasons or "was stopped" in str(error)
    assert slow.engine.num_open == 0 and slow.engine.pool.num_used == 0


def test_a_listener_that_generates_does_not_wait_for_itself(small):
    ended: SimpleQueue[str] = SimpleQueue()

    def listen(event):
        if event.kind == "done":
            ended.put(event.error)
        else:
            small.generate([PROMPTS[0]], GREEDY)

    small.engine.start()
    small.engine.submit(Request("listens", PROMPTS[1], GREEDY, listener=listen))
    assert "make the call in another one" in ended.get(timeout=30)
    assert len(small.generate([PROMPTS[0]], GREEDY)[0].outputs[0].token_ids) == 5
