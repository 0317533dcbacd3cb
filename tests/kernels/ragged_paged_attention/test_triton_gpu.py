"""The GPU body: its values interpreted on a CPU and, where there is one, on a GPU; what its compiler makes of it."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import triton_interpreter
from bodies import beside_the_formula, on_a_gpu
from described import GPUS, check_fits, compiled, triton_kernels

from flexjax.kernels.ragged_paged_attention import Int4Pages, ragged_paged_attention
from flexjax.kernels.ragged_paged_attention.arg_specs import ARG_SPECS, GEMMA2_2B, LLAMA3_8B, ArgSpec, decode

jax_triton = pytest.importorskip("jax_triton", reason="jax-triton is not installed (extra cuda)")

COMPILED = {
    "decode": LLAMA3_8B(sequences=decode(64, 2048), dtype="bfloat16"),
    "int8_pages": LLAMA3_8B(sequences=decode(64, 2048), dtype="bfloat16", page_dtype="int8"),
    "float8_pages": LLAMA3_8B(sequences=decode(64, 2048), dtype="bfloat16", page_dtype="float8_e4m3fn"),
    "int4_pages": LLAMA3_8B(sequences=decode(64, 2048), dtype="bfloat16", page_dtype="int4"),
    "int4_prefill": LLAMA3_8B(sequences=((2048, 2048),), dtype="bfloat16", page_dtype="int4"),
    "prefill": LLAMA3_8B(sequences=((2048, 2048),), dtype="bfloat16"),
    "window_and_cap": GEMMA2_2B(sequences=((300, 900), (1, 900)), dtype="bfloat16", window=512),
}


def abstract(spec: ArgSpec) -> tuple[Any, ...]:
    """The shapes of the arguments, which are too large to be made here."""
    T, B = sum(new for new, _ in spec.sequences), len(spec.sequences)
    P = max(total for _, total in spec.sequences) // spec.page_size + 1
    shape = jax.ShapeDtypeStruct
    new = shape((T, spec.K, spec.H), spec.dtype)
    num_pages = B * P + 3
    if spec.page_dtype == "int4":
        scales = shape((num_pages, 2 * spec.K, spec.page_size), "bfloat16")
        pages = Int4Pages(shape((num_pages, spec.K, spec.page_size, spec.H), "int8"), scales)
    else:
        pages = shape((num_pages, spec.page_size, spec.K, 2, spec.H), spec.page_dtype or spec.dtype)
    batch = (shape(size, "int32") for size in ((B + 1,), (B,), (B, P)))
    return shape((T, spec.N, spec.H), spec.dtype), new, new, pages, *batch


def test_values_by_the_interpreter():
    triton_interpreter.run_tests(Path(__file__).with_name("on_triton_interpreter.py"))


@on_a_gpu
@pytest.mark.parametrize("name", ARG_SPECS)
def test_values_on_a_gpu(name: str):
    spec = ARG_SPECS[name]
    (got, want), *pages = beside_the_formula(ragged_paged_attention, spec)
    for written, want_written in pages:
        np.testing.assert_array_equal(written, want_written)
    tolerance = 1e-5 if spec.dtype == "float32" else 1e-2  # In bfloat16 weights are rounded.
    np.testing.assert_allclose(got, want, atol=tolerance)


@pytest.mark.parametrize("chip", GPUS)
@pytest.mark.parametrize("name", COMPILED)
def test_compiles_into_registers_and_shared_memory(chip: str, name: str, monkeypatch: pytest.MonkeyPatch):
    spec = COMPILED[name]
    call = functools.partial(ragged_paged_attention, **spec.options)
    kernels = triton_kernels(monkeypatch, chip, call, *abstract(spec))
    check_fits(kernels, chip, ["_attend"], most_spilled_bytes=64)


def test_donated_pages_are_not_copied():
    spec = COMPILED["decode"]
    q, k, v, pages, *batch = abstract(spec)
    made = compiled("h100", functools.partial(ragged_paged_attention, **spec.options), q, k, v, pages, *batch, donate=3)
    memory = made.memory_analysis()
    assert memory is not None
    cache = pages.size * pages.dtype.itemsize
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes <= 0.02 * cache


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"page_dtype": "float16"}, "kv_pages are float16; bfloat16 and float32 are served, and int8, float8"),
        ({"H": 320}, "head_dim=320 is more than the 256"),
    ],
)
def test_what_it_cannot_do_it_says(change, reason):
    spec = dataclasses.replace(ARG_SPECS["shipped_mixed"], **change)
    call = functools.partial(ragged_paged_attention, body="triton_gpu", **spec.options)
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(call, *jax.eval_shape(spec.arguments))
