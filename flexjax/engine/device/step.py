"""The steps that the engine compiles: few shapes, nothing copied.

A dispatch takes the weights, the cache and the sampling memory (both donated) and one packed array of
integers from the host, and gives back the tokens it sampled.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh

from flexjax.engine.config import EngineConfig
from flexjax.engine.device.packing import FROM_DEVICE, Packing
from flexjax.engine.device.placement import Placement, shardings_of
from flexjax.engine.device.sampling import MEMORY_AXES, Controls, Memory, Sampled, count_fed, empty_memory, sample
from flexjax.engine.request import MAX_LOGPROBS
from flexjax.kernels.matmul import packs
from flexjax.kernels.ragged_paged_attention import num_clipped
from flexjax.model import CausalLM, RaggedBatch, parameters
from flexjax.nn import STACKED_BACKENDS, layout_of
from flexjax.refusal import Unsupported


@dataclasses.dataclass(frozen=True, order=True)
class StepShape:
    """Padded sizes of a step; a decoding step has one row a sequence and repeats on the device."""

    decodes_only: bool
    num_rows: int  # T
    num_seqs: int  # B


# On CPU, XLA computes a product in one of several ways by its number of rows, and they round differently.
# From these many rows on there is one way alone, so that a row's result does not depend on the rest of the
# batch (measured with jaxlib 0.11.2 on AVX-512/AMX; docs/decisions/0005). For bfloat16 it is also the fast way.
_CPU_ROW_FLOOR = {"float32": 32, "bfloat16": 4, "float16": 4}
# A TPU register has eight rows, and fewer cost as much. One row alone leaves the matrix units: Llama-3-8B on v5e
# then takes 1.8 times as long by the compiler's own cycles, and six times as long to compile.
_TPU_ROW_FLOOR = 8
# float32 leaves XLA's YNN products out: with them, 2-16 rows round differently from 64 and more.
_CPU_OPTIONS = {"float32": {"xla_cpu_experimental_ynn_fusion_type": ""}}


# XLA for TPU lays weights out in several ways, and copies in every dispatch those that a step wants otherwise than they
# lie.
LAYOUT_BACKENDS = frozenset({"tpu"})
PACKED_BACKENDS = frozenset({"cpu"})


def suited(model: CausalLM, backend: str, *, release: bool = False) -> CausalLM:
    """The model in the form that the backend's compiler serves best; `release` gives the other one up."""
    return model.stacked(release=release) if backend in STACKED_BACKENDS else model


def packed(model: CausalLM, config: EngineConfig, mesh: Mesh | None, *, release: bool = False) -> CausalLM:
    """The model with its weights as the CPU's kernels stream them, on one CPU; `release` gives the other form up.
    Unsupported where rows were to be rounded and nothing here does so."""
    here = mesh is None and jax.default_backend() in PACKED_BACKENDS
    if here and packs(config.dtype):
        form = model.packed(activation_dtype=config.activation_dtype, release=release)
        if form is not model:
            return form
    if config.activation_dtype is not None:
        raise Unsupported(
            f"activation_dtype={config.activation_dtype!r} is built for one CPU, with the kernels that a C++ compiler "
            "and `make setup` build. Leave it out, and rows keep their dtype."
        )
    return model


def compiler_options(config: EngineConfig, backend: str) -> dict[str, Any] | None:
    return _CPU_OPTIONS.get(config.dtype) if backend == "cpu" else None


def step_shapes(config: EngineConfig, backend: str, rows_apart: bool = False) -> list[StepShape]:
    """Every shape the engine may run: decoding at doubling batch sizes, mixed steps at doubling rows. `rows_apart`:
    the model computes each row by itself, whatever their number."""
    floor = 1 if rows_apart else {"cpu": _CPU_ROW_FLOOR[config.dtype], "tpu": _TPU_ROW_FLOOR}.get(backend, 1)
    most_seqs = max(config.max_num_seqs, floor)
    most_rows = max(config.max_num_batched_tokens, floor)
    shapes = [StepShape(True, n, n) for n in _doubling(floor, most_seqs)]
    shapes += [StepShape(False, n, most_seqs) for n in _doubling(min(32, most_rows), most_rows)]
    return shapes


def _doubling(first: int, last: int) -> list[int]:
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(min(2 * sizes[-1], last))
    return sizes


class StepProgram:
    """The steps of one model and engine configuration, stated without an array.

    `weights`, `cache` and `memory` are the abstract arguments of every step, so that a step can be compiled
    where there are no weights, and for a chip that is not there. On a mesh they carry their shardings.
    """

    def __init__(
        self,
        model: CausalLM,
        config: EngineConfig,
        *,
        num_pages: int | Sequence[int],
        pages_per_seq: int,
        backend: str,
        mesh: Mesh | None = None,
    ):
        """`num_pages` of each page table, or of all alike."""
        self.config = config
        self.placement = Placement(mesh)
        self.layout = layout_of(model)
        self.shapes = step_shapes(config, backend, model.rows_apart)
        self.vocab_size = model.config.vocab_size
        self.cache_dtype = jnp.dtype(config.cache_dtype or config.dtype)
        self.graphdef, state = nnx.split(model)
        self.treedef = jax.tree.structure(state)
        abstract = self.placement.abstract
        self.weights = [abstract(value, axes) for _, axes, value in parameters(model)]
        num_slots = config.max_num_seqs + 1  # The last one takes what padding sequences write.
        self.cache_spec = self.placement.cache_spec(model, num_pages, config.page_size, num_slots, self.cache_dtype)
        self.cache = self.placement.abstract_cache(self.cache_spec)
        memory = jax.eval_shape(lambda: empty_memory(num_slots, self.vocab_size))
        split = {name: abstract(getattr(memory, name), axes) for name, axes in MEMORY_AXES.items()}
        self.memory = dataclasses.replace(memory, **split)
        self.packings = {
            shape: Packing(
                shape.num_rows,
                shape.num_seqs,
                pages_per_seq,
                idle_slot=config.max_num_seqs,
                num_steps=config.decode_steps if shape.decodes_only else 1,
                page_size=config.page_size,
                num_tables=len(self.layout.windows),
            )
            for shape in self.shapes
        }

    def model(self, weights: list[jax.Array]) -> CausalLM:
        """The model over the given weights; nothing is copied."""
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, weights))

    def lower(self, shape: StepShape, *, free_layouts: bool = False) -> jax.stages.Lowered:
        """The step of that shape. With `free_layouts` its compiler chooses how the weights lie in memory, else it
        copies, in every dispatch, those that it wants otherwise; `keep_layouts` makes its choice that of all steps."""
        packing = self.packings[shape]
        body = _decode_steps if shape.decodes_only else _mixed_step

        def step(weights, cache, memory, packed):
            fields, most_steps = packing.unpack(packed), self.config.decode_steps
            cache, memory, sampled = body(self.model(weights), cache, memory, fields, most_steps)
            return cache, memory, dataclasses.replace(sampled, clipped=num_clipped(cache))

        whole = self.placement.whole
        packed = jax.ShapeDtypeStruct((packing.size,), jnp.int32, sharding=whole)
        out = (shardings_of(self.cache), shardings_of(self.memory), whole)
        weights, options = self.weights, {}
        if free_layouts:
            free = [Format(Layout.AUTO, w.sharding) for w in weights]
            others = (None,) * 3 if whole is None else (shardings_of(self.cache), shardings_of(self.memory), whole)
            weights = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights]
            options = {"in_shardings": (free, *others)}
        with self.placement.in_use():
            jitted = self.placement.jit(step, out, donate_argnums=(1, 2), **options)
            return jitted.lower(weights, self.cache, self.memory, packed)

    def keep_layouts(self, compiled: jax.stages.Compiled) -> list[Format]:
        """Lowers steps from now on for weights as a step with `free_layouts` wants them; tells where to put them."""
        formats = compiled.input_formats[0][0]
        self.weights = [
            jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=f) for w, f in zip(self.weights, formats, strict=True)
        ]
        return formats


def _controls(f: dict[str, jax.Array], step: jax.Array) -> Controls:
    """Those of each sequence's own `step` within the dispatch."""
    found = {field.name: f[field.name] for field in dataclasses.fields(Controls)}
    forced = jnp.take_along_axis(f["forced"], step[:, None], axis=1)[:, 0]
    return Controls(**found | {"wants_logprobs": f["wants_logprobs"] > 0, "forced": forced})


def _mixed_step(model: CausalLM, cache, memory: Memory, f: dict[str, Any], max_steps: int):
    """Decoding rows and prefill chunks together, once; a chunk that ends its prompt yields a token."""
    num_rows, num_seqs = f["tokens"].shape[0], f["slots"].shape[0]
    last = memory.last_tokens[f["slots"]][jnp.minimum(jnp.arange(num_rows), num_seqs - 1)]
    tokens = jnp.where(f["tokens"] == FROM_DEVICE, last, f["tokens"])
    fresh = jnp.ones_like(f["slots"], bool)
    cache, memory, sampled = _forward(
        model,
        cache,
        memory,
        f,
        tokens,
        f["positions"],
        f["kv_lengths"],
        fresh,
        jnp.zeros_like(f["slots"]),
        max_query_len=num_rows,
    )
    padding = ((0, max_steps - 1), (0, 0))
    pad = lambda x: jnp.pad(x[None], padding[:1] + ((0, 0),) * x.ndim)
    return cache, memory, jax.tree.map(pad, sampled)


def _decode_steps(model: CausalLM, cache, memory: Memory, f: dict[str, Any], max_steps: int):
    """`num_steps` tokens a sequence in one dispatch.

    A sequence with fewer `samples` to make stays on its last row: it writes the same keys and values there again, and
    its state and its last token it leaves as they are.
    """
    num_seqs = f["slots"].shape[0]
    live = f["kv_lengths"] > 0
    fed = jnp.where(f["tokens"] == FROM_DEVICE, memory.last_tokens[f["slots"]], f["tokens"])

    def body(carry):
        j, fed, cache, memory, out = carry
        step = jnp.minimum(j, f["samples"] - 1)
        ahead = jnp.where(live, step, 0)
        cache, memory, sampled = _forward(
            model,
            cache,
            memory,
            f,
            fed,
            f["positions"] + ahead,
            f["kv_lengths"] + ahead,
            j < f["samples"],
            ahead,
            max_query_len=1,
        )
        out = jax.tree.map(lambda all_steps, one: all_steps.at[j].set(one), out, sampled)
        fed = jnp.where(j + 1 < f["samples"], sampled.tokens, fed)
        return j + 1, fed, cache, memory, out

    width = 1 + MAX_LOGPROBS
    out = Sampled(
        jnp.zeros((max_steps, num_seqs), jnp.int32),
        jnp.zeros((max_steps, num_seqs, width), jnp.int32),
        jnp.zeros((max_steps, num_seqs, width), jnp.float32),
    )
    carry = (jnp.int32(0), fed, cache, memory, out)
    _, _, cache, memory, out = jax.lax.while_loop(lambda c: c[0] < f["num_steps"], body, carry)
    return cache, memory, out


def _forward(model, cache, memory: Memory, f, tokens, positions, kv_lengths, fresh, step, max_query_len: int):
    slots, starts = f["slots"], f["query_starts"]
    idle = memory.last_tokens.shape[0] - 1  # Takes what a row that is not `fresh` would write.
    states = jnp.where(fresh, slots, idle)
    batch = RaggedBatch(tokens, positions, starts, kv_lengths, f["page_table"], states, max_query_len)
    hidden, cache = model(batch, cache)
    controls = _controls(f, step)
    memory = count_fed(memory, controls, slots, tokens, positions, starts, fresh)
    last_rows = jnp.maximum(starts[1:] - 1, 0)
    sampled = sample(model.logits(hidden[last_rows]), controls, memory, slots, kv_lengths)
    yields = jnp.where(fresh & (f["samples"] > 0), slots, idle)
    memory = dataclasses.replace(memory, last_tokens=memory.last_tokens.at[yields].set(sampled.tokens))
    return cache, memory, sampled
