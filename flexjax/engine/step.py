"""The compiled steps: few shapes, all compiled before the first request, nothing copied.

A dispatch takes the weights, the cache and the sampling memory (both donated) and one packed array of
integers from the host, and gives back the tokens it sampled.
"""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flexjax import causal_lm
from flexjax.causal_lm import CausalLM, RaggedBatch
from flexjax.engine.config import EngineConfig
from flexjax.engine.request import MAX_LOGPROBS
from flexjax.engine.sampling import MAX_STOP_IDS, Controls, Memory, Sampled, count_fed, empty_memory, sample
from flexjax.engine.scheduler import Plan
from flexjax.engine.sequence import Sequence

FROM_DEVICE = -1  # In `tokens`: the row takes the last token that its slot sampled.


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
# float32 leaves XLA's YNN products out: with them, 2-16 rows round differently from 64 and more.
_CPU_OPTIONS = {"float32": {"xla_cpu_experimental_ynn_fusion_type": ""}}


def step_shapes(config: EngineConfig) -> list[StepShape]:
    """Every shape the engine may run: decoding at doubling batch sizes, mixed steps at doubling rows."""
    floor = _CPU_ROW_FLOOR[config.dtype] if jax.default_backend() == "cpu" else 1
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


class Packing:
    """Where each field of a step lies in its one packed int32 array; floats travel as their bits."""

    def __init__(self, shape: StepShape, pages_per_seq: int):
        t, b = shape.num_rows, shape.num_seqs
        ints, floats = np.int32, np.float32
        self.fields: dict[str, tuple[Any, tuple[int, ...]]] = {
            "num_steps": (ints, ()),
            "tokens": (ints, (t,)),
            "positions": (ints, (t,)),
            "query_starts": (ints, (b + 1,)),
            "kv_lengths": (ints, (b,)),
            "slots": (ints, (b,)),
            "samples": (ints, (b,)),
            "page_table": (ints, (b, pages_per_seq)),
            "seed": (np.uint32, (b,)),
            "temperature": (floats, (b,)),
            "top_k": (ints, (b,)),
            "top_p": (floats, (b,)),
            "min_p": (floats, (b,)),
            "repetition": (floats, (b,)),
            "presence": (floats, (b,)),
            "frequency": (floats, (b,)),
            "min_length": (ints, (b,)),
            "stop_ids": (ints, (b, MAX_STOP_IDS)),
            "prompt_lengths": (ints, (b,)),
            "wants_logprobs": (ints, (b,)),
        }
        sizes = [int(np.prod(dims)) for _, dims in self.fields.values()]
        self.offsets = dict(zip(self.fields, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        self.size = sum(sizes)

    def views(self, packed: np.ndarray) -> dict[str, np.ndarray]:
        """Writable views of a packed host array, one a field."""
        return {
            name: packed[self.offsets[name] : self.offsets[name] + int(np.prod(dims))].view(dtype).reshape(dims)
            for name, (dtype, dims) in self.fields.items()
        }

    def unpack(self, packed: jax.Array) -> dict[str, jax.Array]:
        fields = {}
        for name, (dtype, dims) in self.fields.items():
            start = self.offsets[name]
            flat = packed[start : start + int(np.prod(dims))].reshape(dims)
            fields[name] = jax.lax.bitcast_convert_type(flat, dtype) if dtype is not np.int32 else flat
        return fields


def _controls(f: dict[str, jax.Array]) -> Controls:
    names = [field.name for field in dataclasses.fields(Controls)]
    return Controls(**{n: f[n] > 0 if n == "wants_logprobs" else f[n] for n in names})


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What the compiler says of one compiled step, in bytes (None where the backend says nothing)."""

    shape: StepShape
    argument: int | None
    temp: int | None
    alias: int | None


class StepRunner:
    """Weights, cache and memory on the device, and the compiled steps over them."""

    def __init__(self, model: CausalLM, config: EngineConfig, *, num_pages: int, pages_per_seq: int):
        self.config = config
        self.num_pages = num_pages
        self.pages_per_seq = pages_per_seq
        self.vocab_size = model.config.vocab_size
        self.cache_dtype = jnp.dtype(config.cache_dtype or config.dtype)
        self._graphdef, state = nnx.split(model)
        self._weights, self._treedef = jax.tree.flatten(state)
        num_slots = config.max_num_seqs + 1  # The last one takes what padding sequences write.
        self._cache_spec = model.cache_spec(num_pages, config.page_size, num_slots, self.cache_dtype)
        self.cache = causal_lm.zeros(self._cache_spec)
        self.memory = empty_memory(num_slots, self.vocab_size)
        self.shapes = step_shapes(config)
        self._packings = {shape: Packing(shape, pages_per_seq) for shape in self.shapes}
        self._compiled: dict[StepShape, jax.stages.Compiled] = {}
        self.costs: list[StepCost] = []
        self.compile_seconds = 0.0

    @property
    def weight_bytes(self) -> int:
        return sum(w.nbytes for w in self._weights)

    @property
    def cache_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.cache))

    def model(self) -> CausalLM:
        """The model over the same weights; nothing is copied."""
        return nnx.merge(self._graphdef, jax.tree.unflatten(self._treedef, self._weights))

    def compile(self) -> None:
        """Compiles every shape; XLA works outside the interpreter's lock, so two at a time."""
        start = time.perf_counter()
        options = _CPU_OPTIONS.get(self.config.dtype) if jax.default_backend() == "cpu" else None
        lowered = [self._lower(shape) for shape in self.shapes]
        with ThreadPoolExecutor(2) as pool:
            compiled = list(pool.map(lambda low: low.compile(compiler_options=options), lowered))
        self._compiled = dict(zip(self.shapes, compiled, strict=True))
        for shape, step in self._compiled.items():
            memory = step.memory_analysis()
            sizes = (
                (memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.alias_size_in_bytes)
                if memory
                else (None,) * 3
            )
            self.costs.append(StepCost(shape, *sizes))
        self.compile_seconds = time.perf_counter() - start

    def run(self, plan: Plan) -> Sampled:
        """Dispatches a plan and returns at once; `tokens[j, i]` is what chunk i samples in step j."""
        shape = self._shape_of(plan)
        packed = self._pack(plan, shape)
        self.cache, self.memory, sampled = self._compiled[shape](self._weights, self.cache, self.memory, packed)
        return sampled

    def _shape_of(self, plan: Plan) -> StepShape:
        decodes_only = plan.num_decodes == len(plan.chunks)
        for shape in self.shapes:
            if shape.decodes_only == decodes_only and shape.num_rows >= plan.num_rows:
                return shape
        raise AssertionError(f"no step shape holds {plan.num_rows} rows")

    def _pack(self, plan: Plan, shape: StepShape) -> np.ndarray:
        packing = self._packings[shape]
        packed = np.zeros(packing.size, np.int32)
        f = packing.views(packed)
        f["num_steps"][...] = plan.num_steps
        f["slots"][:] = self.config.max_num_seqs
        f["top_p"][:] = 1
        f["repetition"][:] = 1
        f["stop_ids"][:] = -1
        row = 0
        for i, chunk in enumerate(plan.chunks):
            sequence, end = chunk.sequence, chunk.start + chunk.length
            if i < plan.num_decodes and chunk.start >= len(sequence.tokens):
                f["tokens"][row] = FROM_DEVICE
            else:
                f["tokens"][row : row + chunk.length] = sequence.tokens[chunk.start : end]
            f["positions"][row : row + chunk.length] = np.arange(chunk.start, end)
            row += chunk.length
            f["query_starts"][i + 1] = row
            f["kv_lengths"][i] = end
            f["slots"][i] = sequence.slot
            f["samples"][i] = chunk.samples
            f["page_table"][i, : len(sequence.pages)] = sequence.pages
            _pack_controls(f, i, sequence)
        f["query_starts"][len(plan.chunks) + 1 :] = row
        return packed

    def _lower(self, shape: StepShape) -> jax.stages.Lowered:
        packing = self._packings[shape]
        body = _decode_steps if shape.decodes_only else _mixed_step
        max_steps = self.config.decode_steps

        def step(weights, cache, memory, packed):
            model = nnx.merge(self._graphdef, jax.tree.unflatten(self._treedef, weights))
            return body(model, cache, memory, packing.unpack(packed), max_steps)

        abstract = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
        arguments = jax.tree.map(abstract, (self._weights, self.cache, self.memory))
        packed = jax.ShapeDtypeStruct((packing.size,), jnp.int32)
        return jax.jit(step, donate_argnums=(1, 2)).lower(*arguments, packed)


def _pack_controls(f: dict[str, np.ndarray], i: int, sequence: Sequence) -> None:
    params = sequence.request.params
    f["seed"][i] = sequence.seed
    f["prompt_lengths"][i] = sequence.num_prompt
    f["temperature"][i] = params.temperature
    f["top_k"][i] = params.top_k
    f["top_p"][i] = params.top_p
    f["min_p"][i] = params.min_p
    f["repetition"][i] = params.repetition_penalty
    f["presence"][i] = params.presence_penalty
    f["frequency"][i] = params.frequency_penalty
    f["wants_logprobs"][i] = params.logprobs is not None
    if params.min_tokens:
        f["min_length"][i] = sequence.num_prompt + params.min_tokens
        f["stop_ids"][i, : len(sequence.stop_ids)] = sorted(sequence.stop_ids)


def _mixed_step(model: CausalLM, cache, memory: Memory, f: dict[str, jax.Array], max_steps: int):
    """Decoding rows and prefill chunks together, once; a chunk that ends its prompt yields a token."""
    num_rows, num_seqs = f["tokens"].shape[0], f["slots"].shape[0]
    last = memory.last_tokens[f["slots"]][jnp.minimum(jnp.arange(num_rows), num_seqs - 1)]
    tokens = jnp.where(f["tokens"] == FROM_DEVICE, last, f["tokens"])
    cache, memory, sampled = _forward(model, cache, memory, f, tokens, f["positions"], f["kv_lengths"], num_rows)
    padding = ((0, max_steps - 1), (0, 0))
    pad = lambda x: jnp.pad(x[None], padding[:1] + ((0, 0),) * x.ndim)
    return cache, memory, jax.tree.map(pad, sampled)


def _decode_steps(model: CausalLM, cache, memory: Memory, f: dict[str, jax.Array], max_steps: int):
    """`num_steps` tokens a sequence in one dispatch.

    A sequence with fewer `samples` to make stays on its last row and writes the same keys and values
    there again, which changes nothing.
    """
    num_seqs = f["slots"].shape[0]
    live = f["kv_lengths"] > 0
    fed = jnp.where(f["tokens"] == FROM_DEVICE, memory.last_tokens[f["slots"]], f["tokens"])

    def body(carry):
        j, fed, cache, memory, out = carry
        step = jnp.minimum(j, f["samples"] - 1)
        ahead = jnp.where(live, step, 0)
        cache, memory, sampled = _forward(
            model, cache, memory, f, fed, f["positions"] + ahead, f["kv_lengths"] + ahead, 1
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


def _forward(model, cache, memory: Memory, f, tokens, positions, kv_lengths, max_query_len: int):
    slots, starts = f["slots"], f["query_starts"]
    batch = RaggedBatch(tokens, positions, starts, kv_lengths, f["page_table"], slots, max_query_len)
    hidden, cache = model(batch, cache)
    controls = _controls(f)
    memory = count_fed(memory, controls, slots, tokens, positions, starts)
    last_rows = jnp.maximum(starts[1:] - 1, 0)
    sampled = sample(model.logits(hidden[last_rows]), controls, memory, slots, kv_lengths)
    memory = dataclasses.replace(memory, last_tokens=memory.last_tokens.at[slots].set(sampled.tokens))
    return cache, memory, sampled
