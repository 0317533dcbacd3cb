"""The compiled steps at work: weights, cache and memory on the device, one dispatch a plan."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from flexjax import kernels
from flexjax.engine.config import EngineConfig
from flexjax.engine.device.cache_scales import cache_scales
from flexjax.engine.device.calibration import Calibration
from flexjax.engine.device.placement import shardings_of
from flexjax.engine.device.sampling import Sampled, empty_memory
from flexjax.engine.device.step import LAYOUT_BACKENDS, StepProgram, StepShape, compiler_options
from flexjax.engine.scheduler import Plan
from flexjax.hardware import memory
from flexjax.kernels.ragged_paged_attention import numbers_per_token
from flexjax.model import CacheLeaf, CausalLM


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What the compiler says of one compiled step, in bytes (None where the backend says nothing)."""

    shape: StepShape
    argument: int | None
    temp: int | None
    alias: int | None


class StepRunner:
    """Compiles every step before the first request, and runs plans through them."""

    def __init__(
        self,
        model: CausalLM,
        config: EngineConfig,
        *,
        num_pages: int | Sequence[int],
        pages_per_seq: int,
        mesh: Mesh | None = None,
        calibration: Callable[[], Calibration] | None = None,
    ):
        """`calibration` gives the sequences that an int8 or float8 cache is scaled by; random ones by default."""
        self._backend = backend = jax.default_backend()
        self.program = StepProgram(
            model,
            config,
            num_pages=num_pages,
            pages_per_seq=pages_per_seq,
            backend=backend,
            mesh=mesh,
        )
        self.placement = self.program.placement
        self.layout = self.program.layout
        # Of all page tables, with the one of each that is nobody's.
        self.num_pages = num_pages if isinstance(num_pages, int) else sum(num_pages)
        self._options = compiler_options(config, backend)
        self._weights = jax.tree.leaves(nnx.state(model))
        if mesh is not None:
            self._weights = jax.device_put(self._weights, shardings_of(self.program.weights))
            self.placement.inspect(self.model(), self.program.cache_spec)
        self.numbers_per_token = numbers_per_token(self.program.cache)  # Into pages that count what they clip.
        self.cache_scales = self._scales(calibration) if self.numbers_per_token else None
        self.cache = self.placement.empty_cache(self.program.cache_spec, self.cache_scales)
        num_slots = config.max_num_seqs + 1
        self.memory = self.placement.made(lambda: empty_memory(num_slots, self.vocab_size), self.program.memory)
        self._compiled: dict[StepShape, jax.stages.Compiled] = {}
        self.costs: list[StepCost] = []
        self.compile_seconds = 0.0

    def _scales(self, calibration: Callable[[], Calibration] | None) -> list[np.ndarray]:
        model = self.model()
        sequences = Calibration.of(None, model.config) if calibration is None else calibration()
        with self.placement.in_use():
            return cache_scales(model, self.cache_dtype.name, sequences.seen, sequences.held_out)

    @property
    def vocab_size(self) -> int:
        return self.program.vocab_size

    @property
    def cache_dtype(self) -> jax.numpy.dtype:
        return self.program.cache_dtype

    @property
    def compiler_options(self) -> Mapping[str, Any]:
        """Of XLA, that every step is compiled with beside the flags of the environment."""
        return self._options or {}

    @property
    def weight_bytes(self) -> int:
        return sum(w.nbytes for w in self._weights)

    @property
    def cache_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.cache))

    @property
    def token_bytes(self) -> int:
        """Of one token's keys and values in all layers."""
        leaves = jax.tree.leaves(self.program.cache_spec, is_leaf=lambda x: isinstance(x, CacheLeaf))
        paged = [leaf for leaf in leaves if "pages" in leaf.axes]
        per_page = sum(leaf.nbytes // leaf.shape[leaf.axes.index("pages")] for leaf in paged)
        return per_page // self.program.config.page_size

    def model(self) -> CausalLM:
        """The model over the same weights; nothing is copied."""
        return self.program.model(self._weights)

    def compile(self) -> None:
        """Compiles every shape; XLA works outside the interpreter's lock, so two at a time.

        Where the compiler may choose how the weights lie, the largest decode step chooses for all.
        """
        start = time.perf_counter()
        shapes = list(self.program.shapes)
        done: dict[StepShape, jax.stages.Compiled] = {}
        if self._backend in LAYOUT_BACKENDS:
            first = max(shapes)
            done[first] = self.program.lower(first, free_layouts=True).compile(compiler_options=self._options)
            formats = self.program.keep_layouts(done[first])
            self._weights = jax.device_put(self._weights, formats, donate=True)
        rest = [shape for shape in shapes if shape not in done]
        with ThreadPoolExecutor(2) as pool:
            done.update(zip(rest, pool.map(kernels.for_threads(self._compile), rest), strict=True))
        self._compiled = {shape: done[shape] for shape in shapes}
        self.costs = [_cost(shape, step) for shape, step in self._compiled.items()]
        self.compile_seconds = time.perf_counter() - start

    def _compile(self, shape: StepShape) -> jax.stages.Compiled:
        compiled = self.program.lower(shape).compile(compiler_options=self._options)
        memory.trim()  # Or the heap keeps for the next step what this one took, beside what that takes.
        return compiled

    def run(self, plan: Plan) -> Sampled:
        """Dispatches a plan and returns at once; `tokens[j, i]` is what chunk i samples in step j."""
        shape = self._shape_of(plan)
        packed = self.program.packings[shape].pack(plan)
        self.cache, self.memory, sampled = self._compiled[shape](self._weights, self.cache, self.memory, packed)
        if sampled.clipped is not None:
            sampled.clipped.copy_to_host_async()
        return sampled

    def _shape_of(self, plan: Plan) -> StepShape:
        decodes_only = plan.num_decodes == len(plan.chunks)
        for shape in self.program.shapes:
            if shape.decodes_only == decodes_only and shape.num_rows >= plan.num_rows:
                return shape
        raise AssertionError(f"no step shape holds {plan.num_rows} rows")


def _cost(shape: StepShape, step: jax.stages.Compiled) -> StepCost:
    memory = step.memory_analysis()
    if memory is None:
        return StepCost(shape, None, None, None)
    return StepCost(shape, memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.alias_size_in_bytes)
