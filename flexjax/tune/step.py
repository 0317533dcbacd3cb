"""The step that is tuned: the engine's own decoding step at full batch."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from flexjax.engine import EngineConfig, pages_of
from flexjax.engine.device import StepProgram, StepShape, compiler_options
from flexjax.lab import Candidate, Refused, Setting, block_sizes, is_block_size
from flexjax.model import CausalLM
from flexjax.nn import layout_of

Options = dict[str, Setting]  # As `compile(compiler_options=)` takes them.


def decode_program(
    model: CausalLM, config: EngineConfig, *, context: int, backend: str, mesh: Mesh | None = None
) -> StepProgram:
    """The engine's steps with room for `max_num_seqs` contexts of `context` tokens and one dispatch more."""
    pages_per_seq = -(-(context + config.decode_steps) // config.page_size)
    held = pages_of(layout_of(model).windows, config, context + config.decode_steps)
    pages = [1 + n * config.max_num_seqs for n in held]
    return StepProgram(model, config, num_pages=pages, pages_per_seq=pages_per_seq, backend=backend, mesh=mesh)


def decode_shape(program: StepProgram) -> StepShape:
    """Decoding at full batch."""
    return max(shape for shape in program.shapes if shape.decodes_only)


def full_batch(program: StepProgram, context: int) -> np.ndarray:
    """The packed argument of a dispatch in which every sequence holds `context` tokens and decodes greedily."""
    packing = program.packings[decode_shape(program)]
    size, steps = program.config.max_num_seqs, program.config.decode_steps
    packed = np.zeros(packing.size, np.int32)
    f = packing.views(packed)
    pages_per_seq = f["page_table"].shape[-1]
    f["num_steps"][...] = steps
    f["slots"][:] = packing.idle_slot
    f["query_starts"][:] = np.minimum(np.arange(len(f["query_starts"])), size)
    f["top_p"][:] = f["repetition"][:] = 1
    f["stop_ids"][:] = -1
    for name, value in (("tokens", 1), ("positions", context - 1), ("kv_lengths", context), ("samples", steps)):
        f[name][:size] = value
    f["prompt_lengths"][:size] = context
    f["slots"][:size] = np.arange(size)
    held = pages_of(program.layout.windows, program.config, context + steps)
    for table, n in zip(f["page_table"].reshape(-1, len(f["slots"]), pages_per_seq), held, strict=False):
        table[:size] = 1 + n * np.arange(size)[:, None] + np.arange(pages_per_seq)[None] % n
    return packed


def compiled_with[T](
    program: StepProgram, candidate: Candidate, backend: str, compile: Callable[[jax.stages.Lowered, Options], T]
) -> T:
    """What `compile` makes of the step under the candidate: its block sizes while it is traced, its flags on top of
    those that the engine itself compiles with. Refused where it fails though the defaults did not."""
    flags = {name: value for name, value in candidate.items() if not is_block_size(name)}
    with block_sizes(candidate):
        # As the engine does on a TPU, whose compiler knows best how the weights should lie.
        lowered = program.lower(decode_shape(program), free_layouts=backend == "tpu")
    try:
        return compile(lowered, {**(compiler_options(program.config, backend) or {}), **flags})
    except jax.errors.JaxRuntimeError as error:
        if not candidate:
            raise
        raise Refused(str(error).splitlines()[0][:200]) from error
