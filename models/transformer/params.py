"""Hugging Face model directories ↔ `Transformer`."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flexjax import files
from flexjax.families import family_of_directory
from flexjax.model import Axes, Convert, Place, set_parameter
from flexjax.refusal import Refusal
from flexjax.safetensors_io import SafetensorsFile, TensorEntry, TensorToWrite, open_checkpoint, write_checkpoint
from models.transformer.config import TransformerConfig
from models.transformer.hf_config import architecture_of, config_from_hf, config_to_hf
from models.transformer.hf_names import AROUND, NAMING, Around, Naming, Stored
from models.transformer.modeling import Transformer

FLOATS = ("bfloat16", "float16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one parameter of a model comes from in a checkpoint."""

    path: tuple[Any, ...]  # In the model's state.
    axes: tuple[str, ...]
    name: str
    stored: Stored


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of an open checkpoint."""

    file: SafetensorsFile
    name: str  # In its file.

    @property
    def entry(self) -> TensorEntry:
        return self.file.entries[self.name]

    def view(self) -> AbstractContextManager[np.ndarray]:
        return self.file.tensor(self.name)


def place_on_default_device(value: np.ndarray, axes: Axes) -> jax.Array:
    # A copy even on CPU: an array that aliased the file would change or die with it.
    return jax.device_put(value, may_alias=False)


def load(
    directory: str | Path,
    *,
    dtype: Any,
    place: Place = place_on_default_device,
    convert: Convert = lambda parameter: parameter,
) -> Transformer:
    """The model of a Hugging Face directory, in `dtype`.

    Weights are memory-mapped and, one at a time, the largest first, handed to `place` and `convert`: memory never holds
    more than the model as it stays and one tensor. Refusal names every tensor that is missing, unexpected or of the
    wrong shape.
    """
    hf = family_of_directory(directory)[1]
    config = config_from_hf(hf)
    model = nnx.eval_shape(lambda: Transformer(config, dtype=dtype, rngs=nnx.Rngs(0)))
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    tensors = _tensors(directory, AROUND.get(architecture_of(hf)))
    naming = NAMING[config.architecture]
    sources = _sources(flat, naming)
    if not any(name.startswith(naming.prefix) for name in tensors):
        sources = [dataclasses.replace(s, name=s.name.removeprefix(naming.prefix)) for s in sources]
    if config.tied_embeddings:
        sources = [_tied(source, naming, tensors) for source in sources]
    _check(directory, config, naming, sources, tensors)
    for source in sorted(sources, key=lambda s: -flat[s.path].size):
        with tensors[source.name].view() as stored:
            value = source.stored.read(stored, source.axes, config.axis_sizes)
            value = np.ascontiguousarray(value, dtype=jnp.dtype(dtype))
            parameter = flat[source.path].replace(place(value, source.axes).block_until_ready())
            converted = convert(parameter)
            jax.block_until_ready(nnx.state(converted) if isinstance(converted, nnx.Module) else converted[...])
            set_parameter(model, source.path, converted)
    return model


def save(model: Transformer, directory: str | Path, *, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes config.json and model.safetensors, or shards and an index past `max_shard_bytes`."""
    config = model.config
    flat = dict(nnx.to_flat_state(nnx.state(model.unstacked())))
    pieces: dict[str, list[Source]] = defaultdict(list)
    for source in _sources(flat, NAMING[config.architecture]):
        pieces[source.name].append(source)

    def tensor(sources: list[Source]) -> TensorToWrite:
        sources = sorted(sources, key=lambda s: s.stored.part)

        def values() -> np.ndarray:
            parts = [s.stored.write(np.asarray(flat[s.path][...]), s.axes) for s in sources]
            return np.concatenate(parts, axis=-1)

        return TensorToWrite(flat[sources[0].path].dtype, sources[0].stored.shape(config.axis_sizes), values)

    hf = config_to_hf(config, model.embedding.dtype)
    write_checkpoint(directory, {name: tensor(sources) for name, sources in pieces.items()}, max_shard_bytes)
    files.write_text(Path(directory) / "config.json", json.dumps(hf, indent=2) + "\n")


def _tensors(directory: str | Path, around: Around | None) -> dict[str, Tensor]:
    """The checkpoint's tensors by their names in the language model's own checkpoint, without those beside it."""
    found: dict[str, Tensor] = {}
    for stored, file in open_checkpoint(directory).items():
        name = stored if around is None else around.own_name(stored)
        if name in found:
            raise Refusal(f"The weights in {directory} hold {name} twice, as {found[name].name} and as {stored}.")
        if name is not None:
            found[name] = Tensor(file, stored)
    return found


def _tied(source: Source, naming: Naming, tensors: Mapping[str, Tensor]) -> Source:
    """The embedding as the head, where a checkpoint of a model whose two are one holds only that."""
    head = naming.parameters["unembedding.weight"].name
    only_head = source.path == ("embedding", "table") and source.name not in tensors and head in tensors
    return dataclasses.replace(source, name=head) if only_head else source


def _sources(flat: Mapping[tuple[Any, ...], Any], naming: Naming) -> list[Source]:
    sources = []
    for path, parameter in flat.items():
        layer = next((part for part in path if isinstance(part, int)), None)
        stored = naming.parameters[".".join(part for part in path if isinstance(part, str))]
        sources.append(Source(path, parameter.get_metadata("axes"), stored.name.format(layer), stored))
    return sources


def _check(
    directory: str | Path,
    config: TransformerConfig,
    naming: Naming,
    sources: list[Source],
    tensors: Mapping[str, Tensor],
) -> None:
    """Refusal unless the checkpoint holds exactly the model's tensors, in its shapes, as floats."""
    wanted = {s.name: s.stored.shape(config.axis_sizes) for s in sources}
    faults = [f"{name} {list(shape)} is missing" for name, shape in wanted.items() if name not in tensors]
    head = naming.parameters["unembedding.weight"].name
    embedding = next(s.name for s in sources if s.path == ("embedding", "table"))
    if not config.tied_embeddings and (head in tensors) != (embedding in tensors):
        faults[0] += " (where the two are one, config.json must say tie_word_embeddings = true)"
    for name, tensor in tensors.items():
        entry = tensor.entry
        if name in wanted and entry.shape != wanted[name]:
            faults.append(f"{name} is {list(entry.shape)}, not {list(wanted[name])}")
        elif name in wanted and entry.dtype.name not in FLOATS:
            faults.append(f"{name} is {entry.dtype.name}, not one of {', '.join(FLOATS)}")
        elif name == head and name not in wanted and embedding in tensors:
            with tensor.view() as tied, tensors[embedding].view() as table:
                if not np.array_equal(tied, table):
                    faults.append(f"{name} differs from {embedding} though config.json says tie_word_embeddings")
        elif name not in wanted and not name.endswith(naming.buffers):
            faults.append(f"{name} {list(entry.shape)} is not part of the model")
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise Refusal(
            f"The weights in {directory} do not fit its config.json ({config.architecture}): {'; '.join(faults[:8])}"
            f"{more}. Both must come from the same model, with quantised weights converted to floats."
        )
