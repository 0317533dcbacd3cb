"""Model families: what one gives, and how it is found among the installed packages."""

import difflib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from flexjax import shipped
from flexjax.files import local
from flexjax.model import CausalLM, Convert, Place
from flexjax.model_files import read_json
from flexjax.refusal import Refusal


class Family(Protocol):
    """A module registered under the entry-point group `flexjax.models`, one entry a published
    architecture name (the `architectures` field of config.json).

    It may have `SIZES`, a mapping of published names such as "llama3-8b" to their config.json, and `MODEL_TYPES`,
    a mapping of the `model_type` field of config.json to an architecture, for those that name none.
    """

    def config_from_hf(self, hf: dict[str, Any]) -> Any:
        """The frozen config. Refusal for a field that the forward pass would need and cannot get."""
        ...

    def config_to_hf(self, config: Any, dtype: Any) -> dict[str, Any]: ...

    def build(self, config: Any, *, dtype: Any, seed: int = 0) -> CausalLM:
        """A model with fresh random weights, in `dtype`."""
        ...

    def load(self, directory: str | Path, *, dtype: Any, place: Place = ..., convert: Convert = ...) -> CausalLM:
        """The model of a Hugging Face directory, weights memory-mapped and put on the device, or where
        `place` puts them, in `dtype`; then each becomes what `convert` makes of it, before the next is read."""
        ...

    def save(self, model: CausalLM, directory: str | Path) -> None:
        """Writes config.json and model.safetensors (indexed past 5 GB)."""
        ...


def families() -> dict[str, importlib.metadata.EntryPoint]:
    """Architecture name → entry point, of every installed package that registers one."""
    return {e.name: e for e in importlib.metadata.entry_points(group="flexjax.models")}


def find_family(architecture: str) -> Family:
    """The family module of a published architecture name; Refusal names the known ones."""
    known = families()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3) or sorted(known)
        raise Refusal(
            f"No installed model family serves the architecture {architecture!r}; nearest known: "
            f"{', '.join(near) or 'none at all (is the project installed? run `make setup`)'}. A package adds one "
            "with an entry point in the group 'flexjax.models'."
        )
    return known[architecture].load()


def published_sizes() -> dict[str, tuple[Family, Mapping[str, Any]]]:
    """Published name → family and config.json, of every installed family that lists its sizes."""
    modules = {entry.value: entry for entry in families().values()}
    loaded = [entry.load() for entry in modules.values()]
    return {name: (family, hf) for family in loaded for name, hf in getattr(family, "SIZES", {}).items()}


def family_of(model: str) -> tuple[Family, Mapping[str, Any]]:
    """The family and config.json of a model directory, or of a published size by name."""
    if (directory := shipped.found(local(model, "A model"))) is not None and directory.is_dir():
        return family_of_directory(directory)
    sizes = published_sizes()
    if model not in sizes:
        near = difflib.get_close_matches(model, sizes, n=3) or sorted(sizes)
        raise Refusal(
            f"A model is a directory, or a published size by name; {model!r} is neither ({shipped.absent(model)}). "
            f"Nearest sizes: {', '.join(near)}. Directories that ship: {', '.join(shipped.models())}."
        )
    return sizes[model]


def family_of_directory(directory: str | Path) -> tuple[Family, dict[str, Any]]:
    """The family module and the parsed config.json of a Hugging Face model directory."""
    path = local(directory, "A model") / "config.json"
    if not path.is_file():
        raise Refusal(f"A model directory holds config.json, weights and tokenizer.json; {path} does not exist.")
    hf = read_json(path)
    names = hf.get("architectures") or _architectures_of(hf.get("model_type"))
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise Refusal(
            f"{path} must name exactly one entry in 'architectures', or none and a 'model_type' among "
            f"{', '.join(sorted(_model_types()))}; it has architectures = {hf.get('architectures')!r} and model_type = "
            f"{hf.get('model_type')!r}. Leave the one that is the language model's class."
        )
    return find_family(names[0]), hf


def _model_types() -> dict[str, str]:
    """The model_type field of config.json → its architecture, of every installed family that lists them."""
    loaded = {entry.value: entry for entry in families().values()}
    return {kind: name for e in loaded.values() for kind, name in getattr(e.load(), "MODEL_TYPES", {}).items()}


def _architectures_of(model_type: Any) -> list[str]:
    known = _model_types()
    return [known[model_type]] if isinstance(model_type, str) and model_type in known else []
