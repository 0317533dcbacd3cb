"""Every body of ragged paged attention against the formula, on all shapes of arg_specs.py."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from flexjax import kernels
from flexjax.kernels.ragged_paged_attention import cpu, ragged_paged_attention
from flexjax.kernels.ragged_paged_attention.arg_specs import ARG_SPECS, ArgSpec
from flexjax.kernels.ragged_paged_attention.pages import LARGEST, Int4Pages, ScaledPages, sizes

BODIES = [
    "base",
    "xla",
    pytest.param("cpu", marks=pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")),
]


@functools.cache
def jitted(body: str, **options):
    """The op under jit; asserts that `body` is what was traced."""

    def traced(*arguments):
        kernels.forget()
        result = ragged_paged_attention(*arguments, body=body, **options)
        assert [choice.body for choice in kernels.bodies_used()["ragged_paged_attention"]] == [body]
        return result

    return jax.jit(traced)


def call(spec: ArgSpec, body: str, arguments=None, **overrides):
    return jitted(body, **{**spec.options, **overrides})(*(host(spec) if arguments is None else arguments))


def put(pages, page: int, slot: int, k, v) -> None:
    """Writes one token's keys and values [K, H]."""
    new = np.stack([k, v], 1)
    if isinstance(pages, Int4Pages):
        new = new.astype(np.float32)
        scale = (np.abs(new).max(-1) * np.float32(1 / 7)).astype(pages.scales.dtype)
        whole = np.round(new * (1 / scale.astype(np.float32))[..., None]).clip(-7, 7).astype(int)
        pages.values[page, :, slot] = (whole[:, 1] << 4 | whole[:, 0] & 15).astype(np.int8)
        pages.scales[page, :, slot] = scale.reshape(-1)
        return
    if isinstance(pages, ScaledPages):
        new = new.astype(np.float32) / pages.scales
        largest = LARGEST[pages.values.dtype.name]
        pages.clipped[:] += (abs(new) > largest).sum(-1, dtype=np.uint32)
        new = new.clip(-largest, largest)
        pages.values[page, slot] = np.round(new) if pages.values.dtype == np.int8 else new
        return
    pages[page, slot] = new


def kept(pages, page: int, slot: int) -> np.ndarray:
    """One token's keys and values, float64 [K, 2, H]."""
    if isinstance(pages, Int4Pages):
        both = pages.values[page, :, slot].astype(int)
        halves = np.stack([((both & 15) ^ 8) - 8, both >> 4], 1)
        return halves * pages.scales[page, :, slot].reshape(-1, 2, 1).astype(float)
    if isinstance(pages, ScaledPages):
        return pages.values[page, slot].astype(float) * pages.scales
    return pages[page, slot].astype(float)


def formula(spec: ArgSpec):
    """Row by row in float64: the outputs, the pages as they must be, to the bit, and for each output the root of the
    sum of squares of what the weighted values bring to it."""
    q, k, v, pages, starts, lengths, table = host(spec)
    pages = jax.tree.map(np.copy, pages)
    out, brought = np.zeros(q.shape), np.zeros(q.shape)
    G = spec.N // spec.K
    for b, length in enumerate(lengths):
        rows = range(starts[b], starts[b + 1])
        for row in rows:
            p = length - starts[b + 1] + row
            put(pages, table[b, p // spec.page_size], p % spec.page_size, k[row], v[row])
        for row in rows:
            p = length - starts[b + 1] + row
            first = 0 if spec.window is None else max(p - spec.window + 1, 0)
            seen = np.array(
                [kept(pages, table[b, s // spec.page_size], s % spec.page_size) for s in range(first, p + 1)]
            )
            for n in range(spec.N):
                score = seen[:, n // G, 0] @ q[row, n].astype(float) * spec.H**-0.5
                if spec.softcap is not None:
                    score = spec.softcap * np.tanh(score / spec.softcap)
                weight = np.exp(score - score.max())
                weight /= weight.sum()
                values = seen[:, n // G, 1]
                out[row, n] = weight @ values
                brought[row, n] = np.sqrt(np.square(weight[:, None] * (values - out[row, n])).sum(0))
    return out, pages, brought


@functools.cache
def host(spec: ArgSpec):
    return jax.tree.map(np.asarray, spec.arguments())


def through_tiles(spec: ArgSpec) -> bool:
    """Whether the C++ may serve it through AMX, where the processor has it."""
    return spec.dtype == "bfloat16" and spec.page_dtype != "float32"


@functools.cache
def expected(spec: ArgSpec):
    return formula(spec)


def bits(x) -> np.ndarray:
    return np.asarray(x).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize])


def check(spec: ArgSpec, result, want, weights: str = "float32") -> None:
    out, pages = result
    assert out.dtype == spec.dtype
    # float32: sums of up to 2048 products of unit normals. bfloat16: half a unit of its 8 bits; and through tiles each
    # weight is rounded to as many, by itself, with a root mean square of 0.4 of the most that it can be.
    bound = 5e-6 + 1e-5 * np.abs(want[0]) if spec.dtype == "float32" else 1e-4 + 2**-8 * np.abs(want[0])
    if weights == "bfloat16":
        bound += 2.5 * 2**-8 * want[2]
    difference = np.abs(np.asarray(out, np.float64) - want[0])
    assert np.all(difference <= bound), f"{np.sum(difference > bound)} of {difference.size} too far off"
    jax.tree.map(lambda got, wanted: np.testing.assert_array_equal(bits(got), bits(wanted)), pages, want[1])
    assert not np.any(np.asarray(out)[len(out) - spec.padding_rows :])


@pytest.mark.parametrize("name", ARG_SPECS)
@pytest.mark.parametrize("body", BODIES)
def test_equals_formula(body: str, name: str):
    spec = ARG_SPECS[name]
    check(spec, call(spec, body), expected(spec), "bfloat16" if body == "cpu" and through_tiles(spec) else "float32")


@pytest.mark.parametrize("name", ARG_SPECS)
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
@pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")
def test_every_instruction_set_equals_formula(instruction_set: str, name: str):
    spec = ARG_SPECS[name]
    body = functools.partial(cpu.ragged_paged_attention, instruction_set=instruction_set, **spec.options)
    check(spec, jax.jit(body)(*host(spec)), expected(ARG_SPECS[name]))


@pytest.mark.parametrize("body", BODIES)
def test_rows_that_nobody_sees_may_be_nan(body: str):
    spec = ARG_SPECS["shipped_mixed"]
    q, k, v, pages, starts, lengths, table = host(spec)
    seen = np.zeros(pages.shape[:2], bool)
    for b, (_, total) in enumerate(spec.sequences):
        for s in range(total):
            seen[table[b, s // spec.page_size], s % spec.page_size] = True
    spoiled = np.where(seen[:, :, None, None, None], pages, np.asarray(np.nan, pages.dtype))
    padding = np.arange(len(q)) >= starts[-1]
    q = np.where(padding[:, None, None], np.asarray(np.nan, q.dtype), q)
    out, _ = call(spec, body, (q, k, v, spoiled, starts, lengths, table))
    np.testing.assert_array_equal(bits(out), bits(call(spec, body)[0]))


@pytest.mark.parametrize(("decode_steps", "page_dtype"), [(1, None), (3, None), (3, "int8"), (3, "int4")])
@pytest.mark.parametrize("body", BODIES)
def test_donated_pages_are_not_copied(body: str, decode_steps: int, page_dtype: str | None):
    spec = ArgSpec(N=8, K=4, H=32, page_size=16, sequences=((1, 40),) * 4, page_dtype=page_dtype)
    arguments = spec.arguments()
    num_pages = sizes(arguments[3])[0]
    enlarged = lambda x: jax.ShapeDtypeStruct((x.shape[0] // num_pages * 32_768 or x.shape[0], *x.shape[1:]), x.dtype)
    pages = [jax.tree.map(enlarged, arguments[3])] * 2  # Two layers.
    q, k, v, _, starts, lengths, table = arguments

    def step(_, carry):
        pages, q, lengths = carry
        updated = []
        for layer in pages:
            q, layer = ragged_paged_attention(q, k, v, layer, starts, lengths, table, body=body, **spec.options)
            updated.append(layer)
        return updated, q, lengths + 1

    def steps(pages, q, lengths):
        carry = (pages, q, lengths)
        return step(0, carry) if decode_steps == 1 else jax.lax.fori_loop(0, decode_steps, step, carry)

    memory = jax.jit(steps, donate_argnums=0).lower(pages, q, lengths).compile().memory_analysis()
    cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pages))
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes <= 0.01 * cache


def in_chunks(spec: ArgSpec, call, chunks: tuple[int, ...]):
    """The rows of one sequence, computed by `call` chunk by chunk over its own pages."""
    q, k, v, pages, _, _, table = host(spec)
    outs, done = [], 0
    for rows in chunks:
        part = slice(done, done + rows)
        done += rows
        starts, length = np.array([0, rows], np.int32), np.array([done], np.int32)
        out, pages = call((q[part], k[part], v[part], pages, starts, length, table), max_query_len=rows)
        outs.append(np.asarray(out))
    return np.concatenate(outs), pages


@pytest.mark.parametrize("body", BODIES)
def test_chunked_equals_whole(body: str):
    spec = ArgSpec(N=8, K=4, H=32, page_size=16, sequences=((75, 75),), window=40)
    out, pages = in_chunks(spec, functools.partial(call, spec, body), (37, 1, 37))
    whole, whole_pages = call(spec, body)
    np.testing.assert_array_equal(bits(pages), bits(whole_pages))
    if body == "cpu":
        np.testing.assert_array_equal(bits(out), bits(whole))
    else:
        np.testing.assert_allclose(out, whole, atol=2e-6)


CHUNKED = [  # Few queries a step and many; whole lines of channels and not; pages that tiles can read and not.
    (ArgSpec(N=3, K=3, H=64, page_size=16, sequences=((75, 75),)), (37, 1, 1, 3, 33)),
    (ArgSpec(N=6, K=2, H=48, page_size=16, sequences=((75, 75),), window=20), (37, 1, 1, 3, 33)),
    (ArgSpec(N=4, K=2, H=80, page_size=5, sequences=((40, 40),), softcap=20.0), (3, 1, 36)),
    (ArgSpec(N=4, K=1, H=32, page_size=32, sequences=((1100, 1100),), window=700), (600, 1, 7, 492)),
]


@pytest.mark.parametrize("page_dtype", ["bfloat16", "int8", "float8_e4m3fn", "int4"])
@pytest.mark.parametrize("spec, chunks", CHUNKED)
@pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")
def test_chunks_and_single_tokens_equal_the_whole_to_the_bit_in_bfloat16(spec: ArgSpec, chunks, page_dtype: str):
    spec = dataclasses.replace(spec, dtype="bfloat16", page_dtype=page_dtype)
    out, pages = in_chunks(spec, functools.partial(call, spec, "cpu"), chunks)
    whole, whole_pages = call(spec, "cpu")
    jax.tree.map(lambda got, wanted: np.testing.assert_array_equal(bits(got), bits(wanted)), pages, whole_pages)
    np.testing.assert_array_equal(bits(out), bits(whole))
    check(spec, (whole, whole_pages), formula(spec), "bfloat16")


@pytest.mark.parametrize("page_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
@pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")
def test_chunks_equal_the_whole_to_the_bit_in_every_instruction_set(instruction_set: str, page_dtype: str):
    """The last row of an odd chunk is computed in a smaller block than in the whole: the compiler may not fuse its
    products with sums in another way there."""
    spec = ArgSpec(N=4, K=2, H=80, page_size=5, sequences=((40, 40),), page_dtype=page_dtype)

    def call(arguments, **overrides):
        options = {**spec.options, **overrides, "instruction_set": instruction_set}
        return jax.jit(functools.partial(cpu.ragged_paged_attention, **options))(*arguments)

    out, _ = in_chunks(spec, call, (3, 1, 36))
    whole, _ = call(host(spec))
    np.testing.assert_array_equal(bits(out), bits(whole))


def alone(spec: ArgSpec, b: int, padded: bool):
    """Sequence b without the others, in the same shapes or in the smallest."""
    q, k, v, pages, starts, lengths, table = host(spec)
    begin, end = starts[b], starts[b + 1]
    rows, B = (len(q), len(lengths)) if padded else (end - begin, 1)
    take = np.minimum(begin + np.arange(rows), len(q) - 1)
    first = np.arange(B) == 0
    return (
        *(x[take] for x in (q, k, v)),
        pages,
        np.array([0] + [end - begin] * B, np.int32),
        np.where(first, lengths[b], 0),
        np.where(first[:, None], table[b], 0),
    )


@pytest.mark.parametrize(
    "name", ["shipped_decode_16", "shipped_mixed", "shipped_long", "llama3_8b_mixed", "float8_mixed", "int4_mixed"]
)
@pytest.mark.parametrize("body", BODIES)
def test_sequence_is_the_same_to_the_bit_whatever_else_is_in_the_batch(body: str, name: str):
    spec = ARG_SPECS[name]
    together = np.asarray(call(spec, body)[0])
    starts = host(spec)[4]
    for b in range(len(spec.sequences)):
        # Only the C++ promises it across shapes: XLA compiles each shape anew.
        out, _ = call(spec, body, alone(spec, b, padded=body != "cpu"))
        rows = starts[b + 1] - starts[b]
        np.testing.assert_array_equal(bits(np.asarray(out)[:rows]), bits(together[starts[b] : starts[b + 1]]))


def random_spec(seed: int, dtype: str) -> ArgSpec:
    rng = np.random.default_rng(seed)
    K, G, page_size = int(rng.integers(1, 4)), int(rng.integers(1, 6)), int(rng.choice([3, 16, 33]))
    totals = rng.integers(1, 700, rng.integers(1, 9))
    new = [int(rng.integers(1, min(total, 50) + 1)) if rng.random() < 0.5 else 1 for total in totals]
    return ArgSpec(
        N=K * G,
        K=K,
        H=int(rng.choice([8, 32, 48, 64, 128])),
        page_size=page_size,
        sequences=tuple(zip(new, map(int, totals), strict=True)),
        window=int(rng.integers(1, 200)) if rng.random() < 0.5 else None,
        softcap=30.0 if rng.random() < 0.3 else None,
        padding_rows=int(rng.integers(0, 5)),
        padding_sequences=int(rng.integers(0, 3)),
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")
def test_random_batches_on_the_cpu(seed: int, dtype: str):
    spec = random_spec(seed, dtype)
    check(spec, call(spec, "cpu"), formula(spec), dtype)
