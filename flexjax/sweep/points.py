"""The points of a sweep: one config with different overrides, each resolved to its last field."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from flexjax import config as config_lib
from flexjax.config_file import Launch
from flexjax.refusal import Refusal

Axes = Sequence[tuple[str, Sequence[Any]]]


@dataclasses.dataclass(frozen=True)
class Point:
    """One config of a sweep. `config` is every field that it has, whether set or by default, as JSON holds them."""

    overrides: Mapping[str, Any]  # Dotted field → value.
    config: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The same for the same resolved config, however it was arrived at."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.overrides.items()) or "(the base)"

    @property
    def config_file(self) -> str:
        """A config file of this point alone, which the launcher runs anywhere."""
        return (
            f'"""One point of a sweep: {self.label.replace("\\", "/").replace(chr(34), chr(39))}"""\n\n'
            "import json\n\n"
            "from ml_collections import ConfigDict\n\n"
            "def get_config():\n"
            f"    return ConfigDict(json.loads({json.dumps(self.config, sort_keys=True)!r}))\n"
        )


def grid(axes: Axes) -> list[dict[str, Any]]:
    """Every combination of the axes' values, the last axis fastest. Refusal for an axis named twice or empty."""
    names = [name for name, _ in axes]
    for name, values in axes:
        if names.count(name) > 1:
            raise Refusal(f"Each axis of a grid stands once; {name!r} stands {names.count(name)} times.")
        if not values:
            raise Refusal(f"An axis of a grid needs at least one value; {name!r} has none.")
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(values for _, values in axes))]


def resolve(
    job_config: type, launcher: Mapping[str, Any], job: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Point:
    """The point that `overrides` make of a config file's launcher and job fields (`config_file.split`).

    Refusal, before anything runs, for a field that is not there or a value that it does not take.
    """
    mine = {f.name for f in dataclasses.fields(Launch)}
    of_launcher = {n: v for n, v in overrides.items() if n.split(".")[0] in mine}
    of_job = {n: v for n, v in overrides.items() if n not in of_launcher}
    both = {**_resolved(Launch, launcher, of_launcher), **_resolved(job_config, job, of_job)}
    return Point(overrides, json.loads(json.dumps(both, default=str)))


def _resolved(cls: type, values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    fields = config_lib.complete(cls, values, overrides)
    for path, value in overrides.items():
        *sections, last = path.split(".")
        holder: Any = fields
        for section in sections:
            holder = holder[section]
        with holder.unlocked(), holder.ignore_type():  # from_config_dict checks types, and says where.
            holder[last] = value
    return config_lib.to_config_dict(config_lib.from_config_dict(cls, fields)).to_dict()
