"""Which body serves a call, and what a wrong call is told."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexjax import kernels
from flexjax.kernels.ragged_paged_attention import ScaledPages, api, cpu, ragged_paged_attention
from flexjax.kernels.ragged_paged_attention.arg_specs import ArgSpec

OP = "ragged_paged_attention"
COPIED_SPEC = ArgSpec(N=8, K=2, H=8, page_size=4, sequences=((3, 9), (1, 6)), padding_rows=1)
SPEC = ArgSpec(N=4, K=2, H=8, page_size=4, sequences=((1, 6), (3, 3)))
needs_library = pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")


@pytest.fixture(autouse=True)
def _empty_record():
    kernels.forget()
    yield
    kernels.forget()


def trace(*arguments, **options):
    """Traces the op, compiling nothing."""
    return jax.eval_shape(lambda *x: ragged_paged_attention(*x, **{**SPEC.options, **options}), *arguments)


@needs_library
def test_cpu_prefers_its_own_body():
    trace(*SPEC.arguments())
    assert kernels.bodies_used()[OP] == (kernels.Choice("cpu"),)


def test_dtype_that_is_not_built_falls_back_with_the_reason():
    q, k, v, pages, *batch = SPEC.arguments()
    trace(*(x.astype(jnp.float16) for x in (q, k, v)), pages, *batch)
    assert kernels.bodies_used()[OP] == (
        kernels.Choice("xla", (("cpu", "q is float16; float32 and bfloat16 are built"),)),
    )
    with pytest.raises(NotImplementedError, match="kv_pages is float16"):
        trace(q, k, v, pages.astype(jnp.float16), *batch, body="cpu")


def test_machine_without_the_library_runs_on_plain_jax(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "LIBRARY", cpu.LIBRARY.with_name("_missing.so"))
    trace(*SPEC.arguments())
    (choice,) = kernels.bodies_used()[OP]
    assert choice.body == "xla"
    assert "C++ compiler" in choice.passed_over[0][1]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (dict(window=0), "window must be positive or None; got 0"),
        (dict(softcap=-1.0), "softcap must be positive or None; got -1.0"),
        (dict(max_query_len=0), "max_query_len must be positive; got 0"),
        (dict(body="gpu"), "has the bodies base, xla, cpu.*'gpu' was asked for"),
    ],
)
def test_option_out_of_range(spoil: dict, message: str):
    with pytest.raises(ValueError, match=message):
        trace(*SPEC.arguments(), **spoil)


@pytest.mark.parametrize(
    "which, cut, message",
    [
        (0, np.s_[:, :3], "multiple of K; N=3, K=2"),
        (2, np.s_[:2], r"v must have shape \(4, 2, 8\)"),
        (3, np.s_[:, :, :, :1], r"kv_pages must have shape \(2, 8\)"),
        (4, np.s_[:2], r"query_starts must have shape \(3,\)"),
        (6, np.s_[0], r"page_table \[B, P\]"),
    ],
)
def test_shapes_that_do_not_fit(which: int, cut, message: str):
    arguments = [np.asarray(x) for x in SPEC.arguments()]
    arguments[which] = arguments[which][cut]
    # Past the shape types, which only tests check.
    with pytest.raises(ValueError, match=message):
        api._check(*arguments, window=None, softcap=None, max_query_len=3)


@needs_library
@pytest.mark.parametrize(
    "which, value, message",
    [
        (4, [0, 1, 9], "nor pass the number of rows; sequence 1 has 9, the bound is 4"),
        (4, [1, 1, 4], "query_starts must begin at 0"),
        (5, [6, 2], "kv_lengths counts the new tokens too; sequence 1 has 2"),
        (5, [6, 99], "kv_lengths must fit the pages of the table; sequence 1 has 99"),
        (6, [[1, 2, 0], [1000, 0, 0]], "page_table must name existing pages; sequence 1 has 1000"),
    ],
)
def test_batch_that_leads_out_of_the_pages_is_refused_at_run_time(which: int, value, message: str):
    arguments = list(SPEC.arguments())
    arguments[which] = jnp.asarray(value, jnp.int32)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(ragged_paged_attention(*arguments, body="cpu", **SPEC.options))


INT8_SPEC = ArgSpec(
    N=8, K=4, H=32, page_size=8, sequences=((1, 20), (7, 17), (3, 3)), padding_rows=2, window=9, page_dtype="int8"
)


@pytest.mark.parametrize("body", ["base", "xla", pytest.param("cpu", marks=needs_library)])
def test_int8_pages_give_attention_over_rounded_keys_and_values(body):
    q, k, v, pages, *batch = INT8_SPEC.arguments()
    run = jax.jit(lambda *args: ragged_paged_attention(*args, body=body, **INT8_SPEC.options))
    out, written = run(q, k, v, pages, *batch)
    # The same in float32, given keys and values that are such multiples already.
    scales = pages.scales
    rounded = [jnp.clip(jnp.round(x / s), -127, 127) * s for x, s in ((k, scales[None, :, 0]), (v, scales[None, :, 1]))]
    want, wide = jax.jit(lambda *args: ragged_paged_attention(*args, body="base", **INT8_SPEC.options))(
        q, *rounded, pages.values.astype(jnp.float32) * scales[None, None], *batch
    )
    assert written.values.dtype == jnp.int8
    np.testing.assert_array_equal(written.values, np.asarray(wide) / np.asarray(scales))
    np.testing.assert_allclose(out, want, atol=1e-5)


@pytest.mark.parametrize("body", ["xla", pytest.param("cpu", marks=needs_library)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("page_dtype", ["int8", "float8_e4m3fn"])
def test_scales_round_nothing(page_dtype: str, dtype: str, body: str):
    """All scales a thousandth and queries, keys and values to match: the same numbers to the bit."""
    spec = dataclasses.replace(INT8_SPEC, dtype=dtype, page_dtype=page_dtype)
    q, k, v, pages, *batch = spec.arguments()
    by = 2.0**-10
    less = dataclasses.replace(pages, scales=pages.scales * by)
    run = jax.jit(lambda *args: ragged_paged_attention(*args, body=body, **spec.options))
    out, written = run(q, k, v, pages, *batch)
    small, small_written = run(q / by, k * by, v * by, less, *batch)
    np.testing.assert_array_equal(out.astype(np.float32) * by, small.astype(np.float32))
    np.testing.assert_array_equal(written.values, small_written.values)
    np.testing.assert_array_equal(written.clipped, small_written.clipped)


def test_pages_of_few_bits_have_scales_and_no_others_have():
    q, k, v, pages, *batch = INT8_SPEC.arguments()
    for wrong in (pages.values, dataclasses.replace(pages, values=pages.values.astype(jnp.float32))):
        with pytest.raises(ValueError, match="Pages of int8 and float8_e4m3fn, and no others, are ScaledPages; got"):
            ragged_paged_attention(q, k, v, wrong, *batch, **INT8_SPEC.options)


def test_scales_of_another_shape_are_refused():
    q, k, v, pages, *batch = INT8_SPEC.arguments()
    arguments = (q, k, v, dataclasses.replace(pages, scales=pages.scales[:2]), *batch)
    with pytest.raises(ValueError, match=r"kv_pages.scales must have shape \(4, 2, 32\)"):
        api._check(*arguments, window=None, softcap=None, max_query_len=7)


def test_int8_pages_cost_little():
    spec = dataclasses.replace(INT8_SPEC, window=None, page_dtype=None)
    q, k, v, pages, *batch = spec.arguments()
    scale = float(jnp.max(jnp.abs(pages))) / 127
    scales, counts = jnp.full((4, 2, 32), scale), jnp.zeros((4, 2), jnp.uint32)
    run = lambda pages: ragged_paged_attention(q, k, v, pages, *batch, body="xla", **spec.options)
    want, _ = run(pages)
    got, _ = run(ScaledPages(jnp.round(pages / scale).astype(jnp.int8), scales, counts))
    assert 0 < jnp.max(jnp.abs(got - want)) < 0.05


@pytest.mark.parametrize("body", ["base", "xla", pytest.param("cpu", marks=needs_library)])
@pytest.mark.parametrize("copies", [2, 4])
def test_copies_of_a_head_change_nothing(body: str, copies: int):
    """Pages hold each kv head several times, as a mesh of more devices than kv heads wants them."""
    q, k, v, pages, *batch = COPIED_SPEC.arguments()
    attend = jax.jit(functools.partial(ragged_paged_attention, **COPIED_SPEC.options, body=body))
    once, pages_once = attend(q, k, v, pages, *batch)
    out, copied = attend(q, k, v, jnp.repeat(pages, copies, axis=2), *batch)
    np.testing.assert_allclose(out, once, atol=2e-6)
    np.testing.assert_array_equal(copied, jnp.repeat(pages_once, copies, axis=2))


@pytest.mark.parametrize("heads", [3, 16])
def test_copies_that_do_not_fit_the_query_heads_are_refused(heads: int):
    q, k, v, pages, *batch = COPIED_SPEC.arguments()
    pages = jnp.zeros((*pages.shape[:2], heads, *pages.shape[3:]))
    with pytest.raises(ValueError, match=f"multiple of K and divide N; they have {heads}, with K=2, N=8"):
        ragged_paged_attention(q, k, v, pages, *batch, **COPIED_SPEC.options)
