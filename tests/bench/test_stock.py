import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flexjax import families
from flexjax.bench.static_batch import Programs
from flexjax.bench.stock import StockConfig, StockTarget
from flexjax.hardware.compile_cache import CompileCounter

CONFIG = StockConfig(batch_size=4, max_prompt_tokens=40, max_output_tokens=24)

KINDS = ("scheduled", "token", "done")


@pytest.fixture(scope="module")
def target(tiny_directory):
    target = StockTarget(tiny_directory, CONFIG)
    target.start()
    yield target
    target.stop()


@pytest.fixture(scope="module")
def greedy(tiny_directory):
    """Greedy continuation without cache, batch or padding."""
    family, _ = families.family_of_directory(tiny_directory)
    model = family.load(tiny_directory, dtype=jnp.float32)
    run = nnx.jit(lambda model, tokens: model.logits(model.dense(tokens)[0][0]))

    def continue_(prompt, count):
        ids = list(prompt)
        for _ in range(count):
            # Right padding is invisible to a causal model, and spares a compile a length.
            padded = jnp.asarray([ids + [0] * (64 - len(ids))], jnp.int32)
            ids.append(int(jnp.argmax(run(model, padded)[len(ids) - 1])))
        return tuple(ids[len(prompt) :])

    return continue_


def test_tokens_are_the_models_own(target, greedy, ask):
    prompts = [range(1, 40), [7, 8, 9], range(100, 120), [5], range(3, 36)]
    asked = [ask(target, prompt, max_tokens=6) for prompt in prompts]  # Five in batches of at most four.
    for listener in asked:
        assert listener.wait().finish_reason == "length"
    assert [listener.token_ids for listener in asked] == [greedy(prompt, 6) for prompt in prompts]


def test_events_are_in_order_one_token_a_step(target, ask):
    listener = ask(target, [1, 2, 3], max_tokens=5)
    listener.wait()
    assert [e.kind for e in listener.events] == ["scheduled"] + ["token"] * 5 + ["done"]
    assert all(len(e.token_ids) == 1 for e in listener.events if e.kind == "token")
    times = [e.time for e in listener.events]
    assert times == sorted(times)


def test_a_batch_ends_entirely_before_the_next_begins(target, ask):
    asked = [ask(target, [i + 1], max_tokens=20 if i == 0 else 2) for i in range(9)]
    for listener in asked:
        listener.wait()
    scheduled, first, done = ([next(e.time for e in r.events if e.kind == kind) for r in asked] for kind in KINDS)
    for start in scheduled:
        # Whoever had a token by now was of a batch before this one.
        assert all(end <= start for begun, end in zip(first, done, strict=True) if begun <= start)


def test_nothing_compiles_after_the_start(target, ask):
    with CompileCounter() as compiles:
        asked = [ask(target, range(1, n), max_tokens=n % 20 + 1) for n in range(2, 41, 3)]
        asked.append(ask(target, [1, 2], temperature=1.0, seed=5))
        for listener in asked:
            listener.wait()
    assert compiles.programs == 0, compiles.names


def test_eos_ends_a_request_unless_ignored(target, greedy, ask):
    tokens = greedy([9, 9, 9], 6)
    stopped = ask(target, [9, 9, 9], max_tokens=6, ignore_eos=False, stop_token_ids=(tokens[2],))
    assert stopped.wait().finish_reason == "stop"
    assert stopped.token_ids == tokens[: tokens.index(tokens[2]) + 1]


def test_sampling_draws_by_temperature(target, greedy, ask):
    drawn = [ask(target, [1, 2, 3], temperature=5.0, seed=seed, max_tokens=12) for seed in (1, 2)]
    for listener in drawn:
        listener.wait()
    assert len({listener.token_ids for listener in drawn} | {greedy([1, 2, 3], 12)}) == 3


def test_forced_tokens_come_back_with_the_model_s_log_probabilities(target, tiny_directory, ask):
    family, _ = families.family_of_directory(tiny_directory)
    model = family.load(tiny_directory, dtype=jnp.float32)
    text = [int(i) for i in np.random.default_rng(0).integers(0, 256, 40)]
    logprobs = np.asarray(jax.nn.log_softmax(model.logits(model.dense(jnp.asarray([text]))[0][0])))
    asked = [ask(target, text[:n], text[n : n + 20], max_tokens=20, logprobs=0) for n in (1, 7, 12, 20)]
    free = ask(target, text[:7], max_tokens=20)
    for n, listener in zip((1, 7, 12, 20), asked, strict=True):
        assert listener.wait().finish_reason == "length"
        assert list(listener.token_ids) == text[n : n + 20]
        expected = logprobs[np.arange(n - 1, n + 19), text[n : n + 20]]
        np.testing.assert_allclose(listener.logprobs, expected, rtol=0, atol=2e-5)
    free.wait()
    beside = ask(target, text[:7], max_tokens=20)  # In one batch with a forced one.
    ask(target, text[:3], text[3:9], max_tokens=9, logprobs=0).wait()
    beside.wait()
    assert beside.token_ids == free.token_ids and beside.logprobs == []


def test_after_the_forced_tokens_it_goes_on_and_a_forced_stop_ends_it(target, greedy, ask):
    listener = ask(target, [9, 9, 9], [4, 5], max_tokens=6)
    listener.wait()
    assert listener.token_ids == (4, 5, *greedy([9, 9, 9, 4, 5], 4))
    stopped = ask(target, [9, 9, 9], [4, 256, 5], max_tokens=6, ignore_eos=False)
    assert stopped.wait().finish_reason == "stop" and stopped.token_ids == (4, 256)


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        (range(41), {}, "1..40 prompt and at most 24 output tokens; the request has 41 and 8"),
        ([], {}, "the request has 0 and 8"),
        ([1], {"max_tokens": 25}, "has 1 and 25"),
        ([1], {"top_k": 3}, "by argmax or by temperature alone"),
        ([1], {"logprobs": 1}, "log-probability \\(logprobs=0\\) alone"),
    ],
)
def test_what_was_not_planned_for_is_refused(target, ask, prompt, sampling, message):
    with pytest.raises(ValueError, match=message):
        ask(target, prompt, **sampling)
    assert ask(target, [1, 2], max_tokens=2).wait().finish_reason == "length"


def test_description_and_samples(target, ask):
    ask(target, [1, 2, 3]).wait()
    described = target.describe()
    assert described["weights_dtype"] == "float32" and described["batch_size"] == 4
    stats = target.stats()
    assert stats.host_s > 0 and stats.device_s > 0 and stats.samples
    assert all(0 < s.used_pages <= 1 and 1 <= s.running <= 4 for s in stats.samples)


def test_stop_ends_open_requests_and_refuses_new_ones(tiny_directory, ask):
    target = StockTarget(tiny_directory, StockConfig(batch_size=1, max_prompt_tokens=8, max_output_tokens=24))
    target.start()
    asked = [ask(target, [1, 2], max_tokens=24) for _ in range(50)]
    target.stop()
    reasons = [listener.wait().finish_reason for listener in asked]
    assert reasons[-1] == "error" and set(reasons) <= {"length", "error"}
    with pytest.raises(RuntimeError, match="takes no requests"):
        ask(target, [1])


def test_padded_sizes_are_few(tiny_directory):
    family, _ = families.family_of_directory(tiny_directory)
    model = family.load(tiny_directory, dtype=jnp.float32)
    programs = Programs(model, dtype="float32", batch_size=16, max_prompt=128, max_output=64)
    assert programs.batch_sizes == [1, 4, 16]
    assert programs.prompt_lengths == [32, 64, 128]
    assert programs.cache_lengths == [64, 128, 192]
