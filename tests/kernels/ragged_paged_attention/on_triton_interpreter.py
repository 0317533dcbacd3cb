"""Values of the GPU body without a GPU; test_triton_gpu.py runs this file in a process of its own."""

import functools

import jax
import jax.numpy as jnp
import jax_triton
import numpy as np
import pytest
import triton_interpreter

from flexjax.kernels.ragged_paged_attention import ragged_paged_attention
from flexjax.kernels.ragged_paged_attention.arg_specs import ARG_SPECS, LLAMA3_8B, decode

LARGE = ("shipped_decode_16", "shipped_prefill", "llama3_8b_decode", "llama3_8b_mixed")
SPECS = {name: spec for name, spec in ARG_SPECS.items() if name not in LARGE} | {
    "decode": LLAMA3_8B(sequences=decode(2, 40), dtype="bfloat16", padding_rows=1, padding_sequences=1),
    "mixed": LLAMA3_8B(sequences=((1, 60), (20, 70), (4, 9))),
}


def check(arguments, options, atol: float) -> None:
    got, pages = ragged_paged_attention(*arguments, body="triton_gpu", **options)
    formula = jax.jit(functools.partial(ragged_paged_attention, body="base", **options))
    want, want_pages = formula(*arguments)
    jax.tree.map(np.testing.assert_array_equal, pages, want_pages)
    np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), atol=atol, rtol=atol)


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax_triton, "triton_call", triton_interpreter.triton_call)


@pytest.mark.parametrize("name", SPECS)
def test_equals_formula(name: str):
    spec = SPECS[name]
    # In bfloat16, weights are rounded before they are multiplied with values.
    check(spec.arguments(), spec.options, 5e-6 if spec.dtype == "float32" else 1e-2)


def test_rows_that_nobody_sees_may_be_nan():
    spec = SPECS["gemma2_prefill"]
    q, k, v, pages, starts, lengths, table = map(np.asarray, spec.arguments())
    seen = np.zeros(pages.shape[:2], bool)
    for b, (new, total) in enumerate(spec.sequences):
        for s in range(max(0, total - new - (spec.window or total) + 1), total):
            seen[table[b, s // spec.page_size], s % spec.page_size] = True
    spoiled = np.where(seen[:, :, None, None, None], pages, np.asarray(np.nan, pages.dtype))
    call = functools.partial(ragged_paged_attention, body="triton_gpu", **spec.options)
    out, _ = call(*map(jnp.asarray, (q, k, v, spoiled, starts, lengths, table)))
    np.testing.assert_array_equal(out, call(*spec.arguments())[0])
