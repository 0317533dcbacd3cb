"""One step's integers and floats in one array, so that a dispatch makes one transfer."""

from typing import Any

import jax
import numpy as np

from flexjax.engine.device.sampling import MAX_STOP_IDS
from flexjax.engine.scheduler import Plan
from flexjax.engine.sequence import Sequence

FROM_DEVICE = -1  # In `tokens`: the row takes the last token that its slot sampled.


class Packing:
    """Where each field of a step of `num_rows` rows and `num_seqs` sequences lies in its packed int32
    array; floats travel as their bits. Slot `idle_slot` takes what padding sequences write. A step makes at most
    `num_steps` tokens a sequence."""

    def __init__(
        self,
        num_rows: int,
        num_seqs: int,
        pages_per_seq: int,
        idle_slot: int,
        num_steps: int = 1,
        page_size: int = 1,
        num_tables: int = 1,
    ):
        """`num_tables`: of pages; a model that has none is given one all the same, of nobody's pages."""
        t, b = num_rows, num_seqs
        self.idle_slot, self.page_size = idle_slot, page_size
        tables = () if num_tables <= 1 else (num_tables,)
        ints, floats = np.int32, np.float32
        self.fields: dict[str, tuple[Any, tuple[int, ...]]] = {
            "num_steps": (ints, ()),
            "tokens": (ints, (t,)),
            "positions": (ints, (t,)),
            "query_starts": (ints, (b + 1,)),
            "kv_lengths": (ints, (b,)),
            "slots": (ints, (b,)),
            "samples": (ints, (b,)),
            "page_table": (ints, (*tables, b, pages_per_seq)),
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
            "forced": (ints, (b, num_steps)),
        }
        self.record = np.dtype([(name, dtype, dims) for name, (dtype, dims) in self.fields.items()])
        sizes = [int(np.prod(dims)) for _, dims in self.fields.values()]
        self.offsets = dict(zip(self.fields, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        self.size = sum(sizes)

    def views(self, packed: np.ndarray) -> dict[str, np.ndarray]:
        """Writable views of a packed host array, one a field."""
        record = packed.view(self.record)
        return {name: record[name].reshape(dims) for name, (_, dims) in self.fields.items()}

    def unpack(self, packed: jax.Array) -> dict[str, jax.Array]:
        fields = {}
        for name, (dtype, dims) in self.fields.items():
            start = self.offsets[name]
            flat = packed[start : start + int(np.prod(dims))].reshape(dims)
            fields[name] = jax.lax.bitcast_convert_type(flat, dtype) if dtype is not np.int32 else flat
        return fields

    def pack(self, plan: Plan) -> np.ndarray:
        """A plan as the step takes it."""
        packed = np.zeros(self.size, np.int32)
        f = self.views(packed)
        f["num_steps"][...] = plan.num_steps
        f["slots"][:] = self.idle_slot
        f["top_p"][:] = 1
        f["repetition"][:] = 1
        f["stop_ids"][:] = -1
        f["forced"][:] = -1
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
            entries = -(-(end + max(chunk.samples - 1, 0)) // self.page_size)
            tables = f["page_table"] if f["page_table"].ndim == 3 else f["page_table"][None]
            for pages, table in zip(sequence.pages, tables, strict=False):
                # Past the last page that a sequence holds begins the first again: what it held lies behind the window.
                table[i, :entries] = np.resize(pages, entries)
            _pack_controls(f, i, sequence)
            if sequence.request.forced:
                first = end - sequence.num_prompt  # The output that this chunk's first sample is.
                forced = sequence.request.forced[first : first + chunk.samples]
                f["forced"][i, : len(forced)] = forced
        f["query_starts"][len(plan.chunks) + 1 :] = row
        return packed


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
