import dataclasses

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from flexjax.bench.workload import Lengths, WorkloadConfig, build_workload, text_start, with_unknown_ends
from flexjax.data.corpus import held_out_documents
from flexjax.engine.request import CompletionOutput

SMALL = WorkloadConfig(prompts=40, input=Lengths(20, 0.5, 4, 48), output=Lengths(10, 0.5, 2, 32), seed=3)


def test_the_same_seed_gives_the_same_workload(byte_tokenizer):
    first = build_workload(SMALL, byte_tokenizer, max_context=96)
    assert first == build_workload(SMALL, byte_tokenizer, max_context=96)
    assert first != build_workload(dataclasses.replace(SMALL, seed=4), byte_tokenizer, max_context=96)


def test_prompts_are_held_out_text_of_the_drawn_lengths(byte_tokenizer):
    text = "\n".join(d.text for d in held_out_documents())
    items = build_workload(SMALL, byte_tokenizer, max_context=96)
    assert len(items) == 40
    for item in items:
        assert 4 <= len(item.prompt_token_ids) <= 48 and 2 <= item.params.max_tokens <= 32
        assert item.params.ignore_eos and item.params.temperature == 0 and item.offset_s is None
    # A byte-level tokenizer cuts characters of several bytes; whole ones must be found in the text.
    whole = [t for i in items if "\ufffd" not in (t := byte_tokenizer.decode(list(i.prompt_token_ids)))]
    assert len(whole) > 30 and all(t in text for t in whole)
    assert len({item.prompt_token_ids for item in items}) == 40


def test_lengths_follow_a_clipped_log_normal():
    drawn = np.array(Lengths(median=50, sigma=0.4, low=1, high=10_000).draw(np.random.default_rng(0), 20_000))
    assert np.median(drawn) == pytest.approx(50, abs=1)
    assert np.log(drawn).std() == pytest.approx(0.4, rel=0.03)  # Rounding to whole tokens adds a little.
    clipped = Lengths(median=50, sigma=2.0, low=40, high=60).draw(np.random.default_rng(0), 1000)
    assert (min(clipped), max(clipped)) == (40, 60)
    assert set(Lengths(7, 0.0, 1, 9).draw(np.random.default_rng(0), 5)) == {7}


def test_a_trace_gives_lengths_and_times(byte_tokenizer, tmp_path):
    rows = "\n".join(f'{{"timestamp": {1000 * i}, "input_length": {10 + i}, "output_length": {5}}}' for i in range(60))
    (tmp_path / "t.jsonl").write_text(rows)
    config = dataclasses.replace(SMALL, trace=str(tmp_path / "t.jsonl"), trace_rate=2.0, trace_length=2.0)
    items = build_workload(config, byte_tokenizer, max_context=96)
    assert [item.offset_s for item in items] == [0.5 * i for i in range(40)]
    assert [len(item.prompt_token_ids) for item in items] == [min(20 + 2 * i, 48) for i in range(40)]
    assert {item.params.max_tokens for item in items} == {10}


def test_what_cannot_fit_is_refused(byte_tokenizer):
    with pytest.raises(ValueError, match=r"48 \+ 32 = 80 tokens, the model has 64"):
        build_workload(SMALL, byte_tokenizer, max_context=64)
    with pytest.raises(ValueError, match="1 <= low <= median <= high"):
        Lengths(median=5, sigma=0.1, low=8, high=9)
    with pytest.raises(ValueError, match="at least one prompt"):
        dataclasses.replace(SMALL, prompts=0)


def framed(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """The same tokenizer, which puts special tokens about a text."""
    found = Tokenizer.from_str(tokenizer.to_str())
    found.add_special_tokens(["<bos>", "<sop>"])
    named = [(name, found.token_to_id(name)) for name in ("<bos>", "<sop>", "<eos>")]
    found.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    return found


def test_a_prompt_begins_as_the_tokenizer_begins_a_text(byte_tokenizer):
    assert text_start(byte_tokenizer) == text_start(framed(byte_tokenizer, "$A <eos>")) == ()
    plain = build_workload(SMALL, byte_tokenizer, max_context=96)
    for template, start in (("<bos> $A <eos>", (257,)), ("<bos> <sop> $A", (257, 258))):
        tokenizer = framed(byte_tokenizer, template)
        assert text_start(tokenizer) == start
        items = build_workload(SMALL, tokenizer, max_context=96)
        n = len(start)
        # The same text of the same drawn length, in which the start counts.
        assert [i.prompt_token_ids for i in items] == [(*start, *i.prompt_token_ids)[:-n] for i in plain]


def test_what_has_no_place_for_a_text_is_refused(byte_tokenizer):
    with pytest.raises(ValueError, match=r"continues text"):
        text_start(framed(byte_tokenizer, "<bos>"))


def answered(items, eos_id):
    """One token as often as an item asks for, with an EOS in the middle of the longer ones."""
    tokens = [[9] * item.params.max_tokens for item in items]
    for one in tokens[1:]:
        one[len(one) // 2] = eos_id
    return [CompletionOutput(0, "", tuple(one), "length") for one in tokens]


def test_unknown_ends_keep_every_length_and_tell_it_to_nobody(items):
    for eos_id, stand_in in ((0, 1), (256, 0)):
        found = with_unknown_ends(items, answered(items, eos_id), eos_id, max_tokens=5)
        for before, item in zip(items, found, strict=True):
            assert item.n_expected == before.n_expected == before.params.max_tokens
            assert item.params == dataclasses.replace(before.params, max_tokens=5, stop_token_ids=(eos_id,))
            assert item.prompt_token_ids == before.prompt_token_ids
            # It ends at the one place where the EOS stands.
            assert item.forced.index(eos_id) == item.n_expected - 1
            assert set(item.forced[:-1]) <= {9, stand_in}


def test_unknown_ends_need_every_answer_whole(items):
    reference = answered(items, 0)
    with pytest.raises(ValueError, match=r"15 answers to 16 items.*quality\.prompts"):
        with_unknown_ends(items, reference[:-1], 0, max_tokens=5)
    with pytest.raises(ValueError, match="4 at most; it has 5 of 5"):
        with_unknown_ends(items, reference, 0, max_tokens=4)
    reference[0] = CompletionOutput(0, "", (9,), "stop")
    with pytest.raises(ValueError, match="it has 1 of 2"):
        with_unknown_ends(items, reference, 0, max_tokens=5)
