"""The Python face: parity with the published implementations, and errors that help."""

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from flexjax import LLM, SamplingParams

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
