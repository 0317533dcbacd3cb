"""A kernel's cost by what its compiler schedules, and by timing it."""

import types

import jax
import jax.numpy as jnp
import pytest

from flexjax.hardware import chips, topology
from flexjax.kernels.case import Case
from flexjax.kernels.ragged_paged_attention import pallas_tpu
from flexjax.lab import CompiledKernel, MeasuredKernel, Refused, kernel, tuning_of

OPS = ("lora_matmul", "matmul", "ragged_paged_attention", "selective_scan", "short_convolution", "ssd")
needs_libtpu = pytest.mark.skipif(
    topology.missing(chips.find("v5e")) is not None, reason=str(topology.missing(chips.find("v5e")))
)


def test_an_op_without_block_sizes_is_refused():
    with pytest.raises(ValueError, match=r"There is no flexjax\.kernels\.sample_top\.tuning"):
        tuning_of("sample_top")


@pytest.mark.tpu
@needs_libtpu
def test_small_blocks_cost_turns_and_each_chip_has_its_own(monkeypatch: pytest.MonkeyPatch):
    evaluate = CompiledKernel("ragged_paged_attention", "llama3_8b_of_8", "v5e")
    cost = evaluate({"ragged_paged_attention.pallas_tpu.BLOCK_KV": 128})
    assert cost.ratio > 1.2
    assert cost.default_value >= evaluate.least == pytest.approx(1e6 * 32 * 2048 * 2 * 128 * 2 / 819e9, rel=1e-3)


@pytest.mark.tpu
@needs_libtpu
@pytest.mark.parametrize(
    ("op", "shape"),
    [("ssd", "mamba2_2_7b_prefill_1024"), ("ssd", "mamba2_130m_prefill_1024"),
     ("selective_scan", "mamba_2_8b_prefill_1024"),
     ("short_convolution", "mamba2_2_7b_decode_64"), ("lora_matmul", "llama3_8b_decode_8"),
     ("matmul", "llama3_8b_gate_up_8")],
)  # fmt: skip
def test_the_loops_that_an_op_declares_are_those_that_its_compiler_lists(op: str, shape: str):
    evaluate = CompiledKernel(op, shape, "v5e")  # NotImplementedError where they are not.
    assert evaluate({}).value >= evaluate.least > 0


def test_loops_that_are_not_known_are_refused(monkeypatch: pytest.MonkeyPatch):
    listed = {"ragged_paged_attention": kernel.read("   0x1 LB: > { x }\n   0x2 LB: > { x }\n")}
    monkeypatch.setattr(kernel, "_listed", lambda *_: listed)
    with pytest.raises(NotImplementedError, match=r"0 bundles \[1 bundles\] \[1 bundles\], not those that are known"):
        CompiledKernel("ragged_paged_attention", "llama3_8b_of_8", "v5e")


UNROLL = {"ssd.pallas_tpu.UNROLL": 12}


def test_a_compiler_that_crashes_ends_nothing_but_its_candidate(monkeypatch: pytest.MonkeyPatch):
    """In a process of its own it tells the shape that it begins, and dies."""
    crash = "import os; print('one'); print('two', flush=True); os.kill(os.getpid(), 11)"
    monkeypatch.setattr(kernel, "COMMAND", [kernel.sys.executable, "-c", crash])
    with pytest.raises(Refused, match="two: the compiler ended by SIGSEGV"):
        kernel.compile_apart("ssd", ["one", "two", "three"], "v5e", UNROLL)
    with pytest.raises(ValueError, match="does not compile for v5e, two: the compiler ended by SIGSEGV"):
        kernel.compile_apart("ssd", ["one", "two", "three"], "v5e", {})


def test_what_is_to_be_chosen_must_compile_for_every_shape(monkeypatch: pytest.MonkeyPatch):
    def compile_apart(op, shapes, chip, candidate, flags=""):
        if candidate and "mamba2_130m_mixed" in shapes:
            raise Refused("mamba2_130m_mixed: the compiler ended by SIGSEGV")

    monkeypatch.setattr(kernel, "compile_apart", compile_apart)
    monkeypatch.setattr(kernel, "_listing", lambda *_: types.SimpleNamespace(read_text=str))
    monkeypatch.setattr(kernel, "cycles", lambda *_: 1e6)
    evaluate = CompiledKernel("ssd", "mamba2_2_7b_prefill_1024", "v5e")
    assert evaluate(UNROLL).ratio == 1
    with pytest.raises(Refused, match="mamba2_130m_mixed"):
        evaluate(UNROLL, effort=3)


@pytest.mark.parametrize("op", OPS)
def test_what_is_tried_is_there(op: str):
    tuning = tuning_of(op)
    for block in tuning.BLOCKS:
        module = kernel.importlib.import_module(f"flexjax.kernels.{op}.{block.module}")
        assert block.note and getattr(module, block.name)
    assert not tuning.SHAPES.keys() & tuning.OTHERS.keys()
    assert all(tuning.case(shape).shape == shape for shape in tuning.OTHERS)
    for shape in tuning.SHAPES:
        assert tuning.case(shape).moved_bytes > 0
        assert all(each.moved_bytes > 0 for each in tuning.kernels(shape))


class Clock:
    """Microseconds that pass by the size of the blocks that a call was compiled with."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch):
    """An op whose body takes as long as there are blocks of its 2048 tokens, on a clock that stands still else."""
    clock = Clock()

    def tick(x, block):
        clock.now += 1e-6 * 2048 / block
        return x

    def case(shape: str) -> Case:
        def step(state, one):
            block = pallas_tpu.MAX_BLOCK_PAGES
            if block > 1000:
                raise NotImplementedError("too many pages")
            ticked = jax.pure_callback(lambda x: tick(x, block), state, state)
            return ticked + (one if block < 8 else 0 * one)

        return Case("op", shape, "pallas_tpu", lambda: (jnp.zeros(()), jnp.ones(())), step, 1.0, 1.0, "float32")

    monkeypatch.setattr(kernel, "tuning_of", lambda op: types.SimpleNamespace(case=case))
    monkeypatch.setattr(kernel, "time", clock)
    monkeypatch.setattr(kernel, "CALLS", 3)
    return MeasuredKernel("op", "any", rounds=3, dispatches=2)


def test_a_kernel_is_timed_beside_itself_with_other_blocks(measured: MeasuredKernel):
    name = "ragged_paged_attention.pallas_tpu.MAX_BLOCK_PAGES"
    cost = measured({name: 32})
    assert (cost.low, cost.ratio, cost.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (cost.value, cost.default_value) == pytest.approx((64.0, 128.0))
    assert cost.same_results
    assert measured({name: 4}).same_results is False
    assert measured.kind == "measured"
    with pytest.raises(Refused, match="too many pages"):
        measured({name: 2000})
