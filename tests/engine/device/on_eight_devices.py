"""One replica over a tensor axis: run by test_placement.py in a process with eight devices."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flexjax.engine import EngineConfig
from flexjax.engine.device.placement import Placement
from flexjax.engine.device.runner import StepRunner
from flexjax.engine.device.score import Scorer
from flexjax.engine.device.step import StepProgram
from flexjax.hardware.mesh import MeshConfig, make_mesh
from flexjax.hardware.sharding import SERVING, check, place
from flexjax.kernels.ragged_paged_attention import Int4Pages, ScaledPages, ragged_paged_attention
from flexjax.model import CacheLeaf, parameters, zeros
from models.transformer import Layer, Rope, TransformerConfig, build, load

GOLDEN = sorted(p.parent for p in (Path(__file__).parents[2] / "models/transformer/golden").glob("*/golden.npz"))
LLAMA = dict(
    architecture="LlamaForCausalLM", vocab_size=512, d_model=128, num_heads=8, num_kv_heads=2, head_dim=32, d_ff=256,
    max_position=4096, layers=(Layer(rope=Rope()),) * 2,
)  # fmt: skip


@pytest.fixture(scope="module")
def llama():
    return build(TransformerConfig(**LLAMA), dtype=jnp.float32)


def tensor_mesh(size: int) -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(tensor=size), jax.devices()[:size])


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_split_equals_published(folder: Path, size: int):
    """Logits within 2e-4 and every greedy token of the published continuation, whatever divides by the mesh:
    of these models 2 or 3 kv heads, 3, 4 or 8 heads, and widths of 32 or 36."""
    mesh = tensor_mesh(size)
    model = load(folder, dtype=jnp.float32, place=place(mesh, SERVING))
    sizes = dict(max_model_len=112, page_size=8, cache_dtype=jnp.float32, rows_per_step=64)
    score = Scorer(model, **sizes, placement=Placement(mesh))
    golden = np.load(folder / "golden.npz")
    for i in range(3):
        prompt, greedy = golden[f"prompt_{i}"], golden[f"greedy_{i}"]
        logits = score(np.concatenate([prompt, greedy]))
        np.testing.assert_allclose(logits[: len(prompt)], golden[f"logits_{i}"], atol=2e-4, rtol=0)
        made = logits.argmax(-1)[len(prompt) - 1 : len(prompt) + len(greedy) - 1]
        np.testing.assert_array_equal(made, greedy)


def pages_of(K: int, form: str, rng: np.random.Generator):
    if form == "float32":
        return rng.normal(size=(7, 4, K, 2, 8)).astype(np.float32)
    values = rng.integers(0, 256, (7, K, 4, 8), np.uint8).view(np.int8)
    return Int4Pages(values, rng.uniform(0.1, 0.2, (7, 2 * K, 4)).astype(jnp.bfloat16))


def copied(pages, copies: int):
    """Each kv head as many times in a row."""
    if not isinstance(pages, Int4Pages):
        return np.repeat(pages, copies, axis=2)
    scales = pages.scales.reshape(7, -1, 2, 4)
    return Int4Pages(np.repeat(pages.values, copies, axis=1), np.repeat(scales, copies, axis=1).reshape(7, -1, 4))


@pytest.mark.parametrize("heads", [(8, 4), (8, 2), (3, 3), (6, 2)], ids=["split", "shared", "whole", "scales_divide"])
@pytest.mark.parametrize(("body", "form"), [("xla", "float32"), ("cpu", "float32"), ("xla", "int4"), ("cpu", "int4")])
def test_attention_over_four_devices_equals_one(body: str, form: str, heads: tuple[int, int]):
    """Of (6, 2) heads the four rows of scales divide by the devices, and the two that they belong to do not."""
    N, K = heads
    rng, placement = np.random.default_rng(0), Placement(tensor_mesh(4))
    q, k, v = (rng.normal(size=(5, n, 8)).astype(np.float32) for n in (N, K, K))
    pages = pages_of(K, form, rng)
    batch = (np.array([0, 3, 4], np.int32), np.array([9, 6], np.int32), np.array([[1, 2, 3], [4, 5, 0]], np.int32))
    attend = jax.jit(functools.partial(ragged_paged_attention, scale=0.3, max_query_len=3, body=body))
    want, want_pages = attend(q, k, v, pages, *batch)
    copies = 2 if heads == (8, 2) else 1
    with placement.in_use():
        got, got_pages = attend(q, k, v, copied(pages, copies), *batch)
    np.testing.assert_allclose(got, want, atol=2e-6)
    want_pages = copied(jax.tree.map(np.asarray, want_pages), copies)
    jax.tree.map(np.testing.assert_array_equal, got_pages, want_pages)
    assert len(got.devices()) == 4


def test_weights_and_cache_are_really_split(llama):
    """Each device holds its share of every weight but the norms, of which it needs all."""
    placement = Placement(tensor_mesh(4))
    placed = [(n, a, place(placement.mesh, SERVING)(np.asarray(v), a)) for n, a, v in parameters(llama)]
    assert not check(placed, placement.mesh, SERVING, min_bytes=2000)
    for name, _, value in placed:
        share = value.nbytes if "norm" in name else value.nbytes // 4
        assert {shard.data.nbytes for shard in value.addressable_shards} == {share}, name

    spec = placement.cache_spec(llama, 64, 16, 1, jnp.float32)
    cache = placement.made(lambda: zeros(spec), placement.abstract_cache(spec))
    for leaf in jax.tree.leaves(cache):
        # Two kv heads for four devices: each is held twice, one a device.
        assert leaf.shape[2] == 4 and {s.data.shape[2] for s in leaf.addressable_shards} == {1}


def test_an_int4_cache_is_split_with_its_scales(llama):
    placement = Placement(tensor_mesh(4))
    spec = placement.cache_spec(llama, 64, 16, 1, jnp.int4)
    for (layer,) in placement.made(lambda: zeros(spec), placement.abstract_cache(spec)):
        # Two kv heads for four devices: each is held twice, one a device, with the scales of its keys and its values.
        assert {s.data.shape for s in layer.values.addressable_shards} == {(64, 1, 16, 32)}
        assert {s.data.shape for s in layer.scales.addressable_shards} == {(64, 2, 16)}
    assert placement.device_bytes(spec) == 2 * 64 * 16 * (32 + 2 * 2)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_split_cache_of_few_bits_scores_like_a_whole_one(llama, dtype: str):
    sizes = dict(max_model_len=48, page_size=8, cache_dtype=jnp.dtype(dtype), rows_per_step=16)
    scales = np.exp2(np.random.default_rng(0).integers(-6, -3, (2, 2, 2, 32))) if dtype == "int8" else None
    whole, split = (Scorer(llama, **sizes, placement=Placement(m), cache_scales=scales) for m in (None, tensor_mesh(4)))
    tokens = np.arange(40)
    # A sum in another order may turn one of a key's elements to the next step.
    np.testing.assert_allclose(split(tokens), whole(tokens), atol=2e-3)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_split_cache_has_the_scales_of_a_whole_one(llama, stacked: bool):
    model, config = llama.stacked() if stacked else llama, EngineConfig(dtype="float32", cache_dtype="int8")
    runners = [StepRunner(model, config, num_pages=4, pages_per_seq=2, mesh=mesh) for mesh in (None, tensor_mesh(4))]
    whole, split = (np.stack(runner.cache_scales) for runner in runners)
    # A sum in another order may bring a number over the next power of two.
    assert (whole == split).mean() > 0.99
    for pages in jax.tree.leaves(runners[1].cache, is_leaf=lambda x: isinstance(x, ScaledPages)):
        # Two kv heads for four devices: each is held twice, one a device, with its scales and counts.
        assert {s.data.shape[-4:] for s in pages.values.addressable_shards} in ({(16, 1, 2, 32)}, {(4, 16, 2, 32)})
        assert {s.data.shape[-3:] for s in pages.scales.addressable_shards} == {(1, 2, 32)}
        assert {s.data.shape[-2:] for s in pages.clipped.addressable_shards} == {(1, 2)}
        heads = np.asarray(pages.scales[0] if stacked else pages.scales)
        np.testing.assert_array_equal(heads[0::2], heads[1::2])


def test_a_whole_array_on_the_mesh_is_found(llama):
    mesh = tensor_mesh(4)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = [(n, a, place(mesh, SERVING)(np.asarray(v), a)) for n, a, v in parameters(llama)]
    at = next(i for i, (name, _, _) in enumerate(placed) if name == "blocks.1.mlp.down.weight")
    placed[at] = (*placed[at][:2], jax.device_put(placed[at][2], everywhere))
    (found,) = check(placed, mesh, SERVING, min_bytes=10_000)
    assert found.name == "blocks.1.mlp.down.weight" and found.wasted_bytes == 3 * 256 * 128 * 4


COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def collectives(text: str) -> list[tuple[str, int]]:
    """(kind, elements) of every one that a greedy step runs: where sampling has a choice, the first branch."""
    found = []
    for line in text.splitlines():
        match = COLLECTIVE.search(line)
        if match and "/cond/branch_1" not in line:
            for dims in re.findall(r"\w\[([\d,]*)\]", match[1]):
                found.append((match[2], int(np.prod([int(d) for d in dims.split(",") if d]))))
    return found


def decode_step(size: int, **fields) -> tuple[StepProgram, jax.stages.Compiled]:
    model = nnx.eval_shape(lambda: build(TransformerConfig(**(LLAMA | fields)), dtype=jnp.bfloat16))
    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=8, decode_steps=2)
    program = StepProgram(model, config, num_pages=4096, pages_per_seq=256, backend="cpu", mesh=tensor_mesh(size))
    return program, program.lower(program.shapes[0]).compile()


ROWS, WIDTH = 4, 128
SUM, GATHER = ("all-reduce", ROWS * WIDTH), ("all-gather", ROWS * WIDTH)
BEST_LOGIT = [("all-reduce", ROWS), ("all-reduce", ROWS)]  # Its value, then its place.
KV_HEADS = [("all-reduce", ROWS * 2 * 32)] * 2


@pytest.mark.parametrize(
    ("size", "fields", "expected"),
    [
        # The embedding, then attention and feed-forward of two layers.
        (2, {}, [SUM] * 5 + BEST_LOGIT),
        # More devices than kv heads: keys and values are summed as well.
        (4, {}, [SUM] * 5 + 2 * KV_HEADS + BEST_LOGIT),
        # A vocabulary that does not divide is split by width: rows gathered, logits summed.
        (2, dict(vocab_size=511), [GATHER] + [SUM] * 4 + [("all-reduce", ROWS * 511)]),
    ],
)
def test_collectives_of_a_decode_step(size, fields, expected):
    """Activations alone cross between devices, in this number and size; a weight never does."""
    program, step = decode_step(size, **fields)
    found = collectives(step.as_text())
    assert sorted(found) == sorted(expected)
    smallest = min(w.size for w in program.weights if w.ndim > 1)
    assert max(elements for _, elements in found) < smallest


def test_no_device_holds_a_second_copy_of_its_part_of_the_cache():
    program, step = decode_step(4)
    leaves = jax.tree.leaves(program.cache)
    part = sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)
    spec = jax.tree.leaves(program.cache_spec, is_leaf=lambda x: isinstance(x, CacheLeaf))
    assert part == sum(leaf.nbytes for leaf in spec) // 4
    memory = step.memory_analysis()
    assert memory.alias_size_in_bytes >= part
    assert memory.temp_size_in_bytes <= 0.01 * part


def test_a_device_is_charged_for_its_own_part_of_a_page():
    model = nnx.eval_shape(lambda: build(TransformerConfig(**LLAMA), dtype=jnp.bfloat16))
    pages = lambda placement: placement.device_bytes(placement.cache_spec(model, 10, 16, 1, jnp.bfloat16))
    assert pages(Placement(tensor_mesh(2))) == pages(Placement()) // 2
    assert pages(Placement(tensor_mesh(8))) == pages(Placement()) // 2, "each of two kv heads is held four times"


def test_a_mesh_axis_that_this_model_cannot_use_is_refused():
    model = nnx.eval_shape(lambda: build(TransformerConfig(**LLAMA), dtype=jnp.bfloat16))
    placement = Placement(make_mesh(MeshConfig(expert=2, tensor=4)))
    with pytest.raises(ValueError, match="none has a dimension for expert=2"):
        placement.inspect(model, placement.cache_spec(model, 8, 16, 1, jnp.bfloat16))
