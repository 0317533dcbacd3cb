"""Config files: where they are, how one is read, and which of its fields are the launcher's."""

import ast
import dataclasses
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections.config_dict import ConfigDict

from flexjax.files import local
from flexjax.refusal import Refusal
from flexjax.shipped import absent, found, home


@dataclasses.dataclass(frozen=True)
class Launch:
    """The fields of a config that the launcher itself reads; the job's `Config` has the others."""

    job: str  # A module of flexjax.jobs.
    xla_flags: str = ""  # A flag set under xla_flags/, set before JAX starts; empty adds none.
    distributed: bool = False  # Joins the processes of the other hosts first; every host runs the same command.


def load(path: str) -> ConfigDict:
    """What `get_config` of the file returns; `PATH:ARG` gives it ARG. The file is the
    current folder's, else the one that ships; Refusal names those that do."""
    local(path, "A config file")
    name, _, argument = path.partition(":")
    file = found(name)
    if file is None or not file.is_file():
        why = f"no such file; {absent(name)}." if file is None else f"{file} is a folder."
        raise Refusal(f"--config={name}: {why} Configs that ship:\n{shipped()}")
    get_config = runpy.run_path(str(file)).get("get_config")
    if get_config is None:
        raise Refusal(f"{file} must define get_config(), returning a ConfigDict.")
    return ConfigDict(get_config(*([argument] if argument else [])))


def split(raw: ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a config file that are the launcher's, and those that are the job's."""
    names = {f.name for f in dataclasses.fields(Launch)}
    return {f: raw[f] for f in raw if f in names}, {f: raw[f] for f in raw if f not in names}


def shipped() -> str:
    """One line a config that ships: its path and the first line of its docstring."""
    return listed(sorted((home() / "configs").rglob("*.py")), home())


def listed(files: Iterable[Path], root: Path | None = None) -> str:
    """One line a file: its name and the first line of its docstring, read without running it."""
    rows = [
        (str(p.relative_to(root)) if root else p.stem, ast.get_docstring(ast.parse(p.read_text())) or "") for p in files
    ]
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:{width}}  {text.partition('\n')[0]}" for name, text in rows)
