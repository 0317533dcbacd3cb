import jax
import pytest

from flexjax import kernels
from flexjax.bench.engine_target import EngineTarget
from flexjax.engine.config import EngineConfig


@pytest.fixture(scope="module")
def target(tiny_directory):
    config = EngineConfig(dtype="float32", max_num_seqs=2, max_num_batched_tokens=32, page_size=8, decode_steps=2)
    target = EngineTarget(tiny_directory, config)
    startup = target.start()
    assert startup.load_s > 0 and startup.compile_s > 0
    yield target
    target.stop()


@pytest.mark.parametrize("form", [None, "int8", "int4"])
def test_what_was_asked_for_is_what_was_allocated(tiny_directory, form, ask):
    shape: dict = dict(max_num_seqs=1, max_num_batched_tokens=8, page_size=8, decode_steps=1, max_model_len=16)
    cache = form and "int8"
    target = EngineTarget(tiny_directory, EngineConfig(dtype="bfloat16", weight_dtype=form, cache_dtype=cache, **shape))
    target.start()
    described = target.describe()
    ask(target, [1, 2, 3], max_tokens=3).wait()
    stats = target.stats()
    target.stop()
    # Layers, tokens of prompt and answer but the last, keys and values of a head: none where nothing is counted.
    per_token = sum(leaf.scales.size for (leaf,) in target.engine.runners[0].cache) if cache else 0
    assert stats.cache_values_written == 5 * per_token and stats.cache_values_clipped <= stats.cache_values_written / 50
    assert described["weights_dtype"] == (form or "bfloat16")
    assert described["cache_dtype"] == (cache or "bfloat16")


def test_requests_come_back_in_order(target, ask):
    asked = [ask(target, range(1, n), max_tokens=5) for n in range(2, 6)]
    for listener in asked:
        assert listener.wait().finish_reason == "length"
        kinds = [e.kind for e in listener.events]
        assert kinds[0] == "scheduled" and kinds[-1] == "done" and set(kinds[1:-1]) == {"token"}
        assert len(listener.token_ids) == 5


def test_a_bad_request_is_refused_at_the_door(target, ask):
    with pytest.raises(ValueError, match="at least one token"):
        ask(target, [])


def test_description_and_samples(target, ask):
    ask(target, [1, 2, 3]).wait()
    described = target.describe()
    assert described["weights_dtype"] == described["cache_dtype"] == "float32"
    assert described["max_num_seqs"] == 2 and described["cache_bytes"] > 0
    if jax.default_backend() == "cpu":
        assert described["xla_options"] == "--xla_cpu_experimental_ynn_fusion_type="
    stats = target.stats()
    assert stats.samples and stats.host_s > 0
    assert all(0 <= s.used_pages <= 1 and 0 <= s.running <= 2 for s in stats.samples)


def test_an_engine_can_be_asked_for_plain_xla(tiny_directory, ask):
    """The step of a ladder below our own kernels: the same tokens in float32, and the record says what ran."""
    if jax.default_backend() != "cpu":
        pytest.skip("on other chips the bodies are not those of a CPU")
    config = EngineConfig(dtype="float32", max_num_seqs=2, max_num_batched_tokens=32, page_size=8)
    ops = ("matmul", "ragged_paged_attention", "rotary")
    tokens, bodies = [], []
    for asked in ({}, dict.fromkeys(ops, "xla")):
        target = EngineTarget(tiny_directory, config)
        with kernels.use_bodies(**asked), kernels.recording() as used:
            target.start()
        tokens.append([listener.token_ids for listener in _answered(ask, target)])
        bodies.append({op: {choice.body for choice in choices} for op, choices in used.items()})
        target.stop()
    assert tokens[0] == tokens[1]
    assert (
        all(found == {"xla"} for op, found in bodies[1].items() if op in ops) and "ragged_paged_attention" in bodies[1]
    )
    if "cpu" in bodies[0]["matmul"]:  # A compiler was there.
        assert bodies[0]["ragged_paged_attention"] == {"cpu"}


def _answered(ask, target):
    asked = [ask(target, range(1, n), max_tokens=12) for n in (2, 5)]
    for listener in asked:
        listener.wait()
    return asked
