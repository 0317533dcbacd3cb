import dataclasses

import numpy as np
import pytest

from flexjax.bench.workload import Lengths, WorkloadConfig, build_workload
from flexjax.train.corpus import held_out_documents

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
