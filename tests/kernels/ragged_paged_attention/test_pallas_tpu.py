"""What stands around JAX's TPU kernel, against the formula, with the kernel's own plain reference in its place.

Neither of Pallas' interpreters runs the kernel itself (jax 0.11.2: "'ReshapeTransform' object has no attribute
'indices'"); that it compiles for real chips, tests/virtual tells.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from described import TPUS, compiled
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel

from flexjax import kernels
from flexjax.kernels.ragged_paged_attention import base, pallas_tpu, ragged_paged_attention
from flexjax.kernels.ragged_paged_attention.arg_specs import ARG_SPECS, GEMMA2_2B, LLAMA3_8B, ArgSpec

SPECS = {
    "decode": LLAMA3_8B(sequences=((1, 40), (1, 7), (1, 33)), dtype="bfloat16"),
    "mixed": LLAMA3_8B(sequences=((1, 20), (19, 40), (4, 9)), padding_rows=3, padding_sequences=1, dtype="bfloat16"),
    "float32": LLAMA3_8B(sequences=((3, 20), (1, 17))),
    "window_and_cap": GEMMA2_2B(sequences=((5, 40), (1, 30)), window=12, dtype="bfloat16"),
    "int8": LLAMA3_8B(sequences=((1, 40), (1, 33)), dtype="bfloat16", page_dtype="int8"),
    "float8": LLAMA3_8B(sequences=((1, 40), (9, 33)), dtype="bfloat16", page_dtype="float8_e4m3fn"),
    "one_kv_head": dataclasses.replace(ARG_SPECS["one_kv_head_long"], sequences=((1, 70), (3, 130))),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_it_gives_what_the_formula_gives(spec: ArgSpec, monkeypatch):
    def attend(q, kv_pages, kv_lengths, page_table, query_starts, num_seqs, *, scale, window, softcap, max_query_len):
        # It returns the rows of live sequences alone, and multiplies with weights in the values' dtype.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            out = kernel.ref_ragged_paged_attention(
                q, kv_pages, kv_lengths, page_table, query_starts, num_seqs,
                sm_scale=scale, sliding_window=window, soft_cap=softcap,
                k_scale=1.0, v_scale=1.0,
            )  # fmt: skip
        return jnp.pad(out, ((0, q.shape[0] - out.shape[0]), (0, 0), (0, 0)), constant_values=jnp.nan)

    monkeypatch.setattr(pallas_tpu, "_attend", attend)
    arguments, options = spec.arguments(), spec.options
    with pltpu.force_tpu_interpret_mode():  # The write of the pages really runs.
        out, pages = pallas_tpu.ragged_paged_attention(*arguments, **options)
    want, want_pages = jax.jit(functools.partial(base.ragged_paged_attention, **options))(*arguments)
    jax.tree.map(np.testing.assert_array_equal, pages, want_pages)
    # The reference rounds its weights to bfloat16 before it multiplies with the values, as the matrix units do.
    tolerance = dict(atol=2e-2, rtol=2e-2) if spec.dtype == "bfloat16" else dict(atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(out.astype(np.float32), want.astype(np.float32), **tolerance)


@pytest.mark.parametrize("chip", TPUS)
def test_float8_pages_compile(chip: str):
    """Without a unit for it, v5e and v6e widen float8 in vector registers."""
    spec = LLAMA3_8B(sequences=((1, 512),) * 16, page_size=128, dtype="bfloat16", page_dtype="float8_e4m3fn")
    kernels.forget()
    compiled(chip, functools.partial(ragged_paged_attention, **spec.options), *jax.eval_shape(spec.arguments), donate=3)
    assert kernels.bodies_used()["ragged_paged_attention"] == (kernels.Choice("pallas_tpu"),)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"H": 64}, "head_dim=64 is no multiple of 128"),
        ({"page_dtype": "float16"}, "kv_pages are float16; bfloat16 and float32 are served, and int8 and float8"),
        ({"N": 4, "K": 1, "page_dtype": "int8"}, "of 1 heads in int8 fill 0.5 sublanes"),
        ({"N": 12, "K": 3}, "of 3 heads in bfloat16 fill 3 sublanes"),
    ],
)
def test_what_it_cannot_do_it_says(change, reason):
    spec = dataclasses.replace(SPECS["decode"], **change)
    with pytest.raises(NotImplementedError, match=reason):
        pallas_tpu.ragged_paged_attention(*spec.arguments(), **spec.options)


def test_the_declared_cost_reads_every_page_of_the_table_once():
    spec = SPECS["decode"]
    q, _, _, pages, _, _, table = spec.arguments()
    combined = pages.reshape(*pages.shape[:2], 2 * spec.K, spec.H)
    cost = pallas_tpu._cost(q, combined, table, max_query_len=1)
    rows = table.shape[0] * table.shape[1] * spec.page_size
    assert cost.bytes_accessed == rows * 2 * spec.K * spec.H * 2 + 2 * q.size * 2
    assert cost.flops == 4 * rows * spec.N * spec.H  # One row a sequence.
