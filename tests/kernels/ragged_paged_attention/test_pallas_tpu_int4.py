"""The TPU kernel for int4 pages: values by Pallas' interpreter, and what the chips' own compiler makes of it."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from described import TPUS, compiled
from jax.experimental.pallas import tpu as pltpu

from flexjax import kernels
from flexjax.kernels.ragged_paged_attention import Int4Pages, base, pallas_tpu, ragged_paged_attention
from flexjax.kernels.ragged_paged_attention.arg_specs import ArgSpec

INT4 = functools.partial(ArgSpec, H=128, page_size=128, page_dtype="int4")
SPECS = {
    "decode": INT4(N=4, K=2, sequences=((1, 140), (1, 7), (1, 530)), padding_rows=1, padding_sequences=1),
    "mixed": INT4(N=4, K=2, sequences=((1, 20), (70, 150), (4, 129)), padding_rows=3, dtype="bfloat16"),
    "window_and_cap": INT4(N=2, K=1, sequences=((40, 300), (1, 700)), window=100, softcap=20.0),
}


def check(spec: ArgSpec, arguments: Any) -> None:
    with pltpu.force_tpu_interpret_mode():
        out, pages = jax.jit(functools.partial(pallas_tpu.ragged_paged_attention, **spec.options))(*arguments)
    want, want_pages = jax.jit(functools.partial(base.ragged_paged_attention, **spec.options))(*arguments)
    jax.tree.map(np.testing.assert_array_equal, pages, want_pages)
    # In bfloat16 weights are rounded before they are multiplied with values.
    tolerance = dict(atol=2e-2, rtol=2e-2) if spec.dtype == "bfloat16" else dict(atol=5e-6, rtol=1e-5)
    np.testing.assert_allclose(out.astype(np.float32), want.astype(np.float32), **tolerance)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_it_gives_what_the_formula_gives(spec: ArgSpec):
    check(spec, spec.arguments())


LLAMA3_8B = functools.partial(INT4, N=32, K=8, dtype="bfloat16")
COMPILED = {
    "decode": LLAMA3_8B(sequences=((1, 2048),) * 64),
    "mixed": LLAMA3_8B(sequences=((1, 2048),) * 7 + ((505, 1000),)),
    "one_head_a_device": INT4(N=4, K=1, sequences=((1, 2048),) * 16, dtype="bfloat16", window=512),
    "float32": LLAMA3_8B(sequences=((16, 700), (1, 900)), dtype="float32"),
}


def abstract(spec: ArgSpec) -> tuple[Any, ...]:
    """The shapes of the arguments, which are too large to be made here."""
    T, B = sum(new for new, _ in spec.sequences), len(spec.sequences)
    P = -(-max(total for _, total in spec.sequences) // spec.page_size)
    shape = jax.ShapeDtypeStruct
    new, num_pages = shape((T, spec.K, spec.H), spec.dtype), 32 * (B * P + 1)  # Of stacked layers.
    values = shape((num_pages, spec.K, spec.page_size, spec.H), "int8")
    pages = Int4Pages(values, shape((num_pages, 2 * spec.K, spec.page_size), "bfloat16"))
    batch = (shape(size, "int32") for size in ((B + 1,), (B,), (B, P)))
    return shape((T, spec.N, spec.H), spec.dtype), new, new, pages, *batch


@pytest.mark.parametrize("chip", TPUS)
@pytest.mark.parametrize("name", COMPILED)
def test_it_compiles_and_copies_no_page(chip: str, name: str):
    spec = COMPILED[name]
    arguments = abstract(spec)
    kernels.forget()
    made = compiled(chip, functools.partial(ragged_paged_attention, **spec.options), *arguments, donate=3)
    assert kernels.bodies_used()["ragged_paged_attention"] == (kernels.Choice("pallas_tpu"),)
    memory = made.memory_analysis()
    cache = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments[3]))
    assert memory is not None
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes <= 0.02 * cache


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"page_size": 64}, "page_size=64 and head_dim=128 must be multiples of 128"),
        ({"H": 64}, "page_size=128 and head_dim=64 must be multiples of 128"),
        ({"dtype": "float16"}, "q is float16; bfloat16 and float32 are served"),
    ],
)
def test_what_it_cannot_do_it_says(change, reason):
    spec = dataclasses.replace(SPECS["decode"], **change)
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(functools.partial(ragged_paged_attention, body="pallas_tpu", **spec.options), *spec.arguments())


def test_rows_that_nobody_sees_may_be_nan():
    """On-chip memory begins as NaN in the interpreter, and what is not seen is not even read there."""
    spec = SPECS["window_and_cap"]
    q, k, v, pages, starts, lengths, table = jax.tree.map(np.asarray, spec.arguments())
    seen = np.zeros((len(pages.scales), spec.page_size), bool)
    for b, (new, total) in enumerate(spec.sequences):
        for s in range(max(0, total - new - (spec.window or total) + 1), total):
            seen[table[b, s // spec.page_size], s % spec.page_size] = True
    scales = np.where(seen[:, None], pages.scales, np.asarray(np.nan, pages.scales.dtype))
    with pltpu.force_tpu_interpret_mode():
        run = jax.jit(functools.partial(pallas_tpu.ragged_paged_attention, **spec.options))
        want, _ = run(q, k, v, pages, starts, lengths, table)
        out, _ = run(q, k, v, Int4Pages(pages.values, scales), starts, lengths, table)
    np.testing.assert_array_equal(out, want)
