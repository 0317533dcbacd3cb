"""Safetensors checkpoints, read through a memory map and written one tensor at a time.

The published reader gives numpy no bfloat16; this one does, and says what is wrong with a broken file.
Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the data).
"""

import contextlib
import dataclasses
import json
import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from flexjax import files
from flexjax.model_files import read_json, refuse_stand_in
from flexjax.refusal import Refusal

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: bytes `begin:end` of its file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One open file; `entries` by name. Refusal if it is missing, a pointer, truncated, or its header is not sound."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        refuse_stand_in(self.path)
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise Refusal(
                    f"{self.path} is truncated or no safetensors file: its header should take {length} bytes "
                    f"and the file has {size}. Copy or download it again."
                )
            try:
                header: dict[str, Any] = json.loads(file.read(length))
            except ValueError as error:
                raise Refusal(f"The header of {self.path} is not valid JSON: {error}.") from error
            if not isinstance(header, dict):
                raise Refusal(f"The header of {self.path} must be a JSON object; it is {str(header)[:80]}.")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header.pop("__metadata__", None)
        self.entries = {name: self._entry(name, fields, 8 + length) for name, fields in header.items()}
        end = max((entry.end for entry in self.entries.values()), default=8 + length)
        if end != size:
            raise Refusal(
                f"{self.path} is {'truncated' if size < end else 'too long'}: its header describes {end} bytes "
                f"and the file has {size}. Copy or download it again."
            )

    def _entry(self, name: str, fields: Any, start: int) -> TensorEntry:
        sizes = [fields.get("shape"), fields.get("data_offsets")] if isinstance(fields, dict) else [None]
        whole = all(isinstance(size, list) and all(type(n) is int and n >= 0 for n in size) for size in sizes)
        if not whole or len(fields["data_offsets"]) != 2:
            raise Refusal(
                f"Tensor {name!r} of {self.path} must have a dtype, a shape and two data_offsets in the header, in "
                f"whole numbers; it has {str(fields)[:120]}. The file is corrupt."
            )
        kind = str(fields.get("dtype"))
        if kind not in DTYPES:
            raise Refusal(f"Tensor {name!r} of {self.path} has dtype {kind}; read are {', '.join(DTYPES)}.")
        dtype, shape = DTYPES[kind], tuple(fields["shape"])
        begin, end = fields["data_offsets"]
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise Refusal(
                f"Tensor {name!r} of {self.path} is {dtype}{list(shape)} but its offsets {begin}..{end} "
                f"span {end - begin} bytes. The file is corrupt."
            )
        return TensorEntry(dtype, shape, start + begin, start + end)

    @contextlib.contextmanager
    def tensor(self, name: str) -> Iterator[np.ndarray]:
        """A read-only view of the mapped bytes; its pages leave resident memory when the block ends."""
        entry = self.entries[name]
        count = math.prod(entry.shape)
        yield np.frombuffer(self._map, entry.dtype, count, entry.begin).reshape(entry.shape)
        if hasattr(mmap, "MADV_DONTNEED"):
            begin = entry.begin - entry.begin % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, begin, entry.end - begin)


def open_checkpoint(directory: str | Path) -> dict[str, SafetensorsFile]:
    """Tensor name → the open file that holds it: one `model.safetensors`, or the shards of an index."""
    directory = files.local(directory, "A model")
    if (directory / SINGLE).is_file():
        file = SafetensorsFile(directory / SINGLE)
        return dict.fromkeys(file.entries, file)
    index = directory / INDEX
    if not index.is_file():
        raise Refusal(
            f"{directory} holds neither {SINGLE} nor {INDEX}. Weights in another form (pytorch_model.bin, gguf) "
            "must be converted to safetensors first."
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise Refusal(f"{index} is no index of shards: its 'weight_map' must give a file name for each tensor.")
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (directory / shard).is_file()]
    if missing:
        raise Refusal(
            f"{index} names {len(shards)} shards and {len(missing)} are missing: {', '.join(missing)}. "
            "Copy or download them into the same directory."
        )
    opened = {shard: SafetensorsFile(directory / shard) for shard in shards}
    for name, shard in weight_map.items():
        if name not in opened[shard].entries:
            raise Refusal(f"{index} says that {name!r} is in {shard}, which does not hold it.")
    return {name: opened[shard] for name, shard in weight_map.items()}


@dataclasses.dataclass(frozen=True)
class TensorToWrite:
    """A tensor whose values are made only when their turn comes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_checkpoint(directory: str | Path, tensors: Mapping[str, TensorToWrite], max_shard_bytes: int) -> None:
    """Writes one `model.safetensors`, or shards and an index when there is more than `max_shard_bytes`.

    No file takes its name before the last is written: until then the weights of an earlier save stay.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, max_shard_bytes)
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    with contextlib.ExitStack() as stack:
        if len(shards) > 1:
            # The first to be entered is the last to be renamed: an index never names a shard that is not there.
            index = stack.enter_context(files.replacing(directory / INDEX))
            total = sum(tensor.nbytes for tensor in tensors.values())
            weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
            content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            index.write(json.dumps(content, indent=2) + "\n")
        for name, shard in zip(names, shards, strict=True):
            file = stack.enter_context(files.replacing(directory / name, "wb"))
            _write(file, {tensor: tensors[tensor] for tensor in shard})
    kept = {*names, INDEX} if len(shards) > 1 else set(names)
    for name in {SINGLE, INDEX, *(path.name for path in directory.glob("model-*-of-*.safetensors"))} - kept:
        (directory / name).unlink(missing_ok=True)


def _shards(tensors: Mapping[str, TensorToWrite], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += tensor.nbytes
    return shards


def _write(file: IO[bytes], tensors: Mapping[str, TensorToWrite]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it.
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # The data starts at a multiple of 8 bytes.
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for tensor in tensors.values():
        values = np.ascontiguousarray(tensor.values())
        assert values.dtype == tensor.dtype and values.shape == tensor.shape
        file.write(values.reshape(-1).view(np.uint8).data)
