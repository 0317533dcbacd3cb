"""From a config file's `ConfigDict` to frozen dataclasses, and back.

A config file is loose and a command line more so; below the launcher code sees typed fields only.
The dataclass is the schema: its fields are what a config may set, its type hints what they hold.
"""

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ml_collections import config_dict
from ml_collections.config_dict import ConfigDict

from flexjax.refusal import Refusal


def from_config_dict[T](cls: type[T], values: Mapping[str, Any] | ConfigDict, path: str = "config") -> T:
    """The dataclass `cls` with the fields that `values` gives; the others keep their defaults.

    Nested dataclasses come from nested mappings, tuples from tuples or lists, floats from floats
    or ints, `Path` from strings. Nothing else is converted: "4" is not 4 and 1 is not True.

    Refusal, always with the field's full path: for a field that `cls` does not have (the nearest
    ones are named), one that is missing, a value of the wrong type, and whatever `cls` itself refuses.
    """
    fields = _fields(cls)
    found = {}
    for name in values:
        if name not in fields:
            raise Refusal(_unknown(path, name, fields))
        try:
            value = values[name]
        except config_dict.RequiredValueError:
            continue  # A placeholder that nobody filled is a field that nobody gave.
        found[name] = _convert(fields[name].hint, value, f"{path}.{name}")
    missing = [name for name, field in fields.items() if field.required and name not in found]
    if missing:
        names = ", ".join(f"{path}.{name}" for name in missing)
        raise Refusal(f"{names} must be set: it has no default. Set it in the config file or by --{names}=….")
    try:
        return cls(**found)
    except ValueError as error:  # Also of classes outside the project, which know no Refusal.
        raise Refusal(f"{path}: {error}") from error


def to_config_dict(config: Any) -> ConfigDict:
    """The dataclass `config` as a ConfigDict; `from_config_dict` of it is equal to `config`."""
    return ConfigDict({f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)})


def complete(cls: type, values: Mapping[str, Any] | ConfigDict, overrides: Iterable[str] = ()) -> ConfigDict:
    """`values` with every field of `cls` in it, so that a flag can override each by its type.

    `overrides` are the dotted paths about to be set (`engine.max_num_seqs`): an optional section that
    is None is opened with its defaults when a field inside it is among them. Raises Refusal for
    an override, or a field of `values`, that `cls` does not have.
    """
    overrides = list(overrides)
    for override in overrides:
        check_path(cls, override)
    return _complete(cls, values, "", overrides)


def check_path(cls: type, dotted: str, path: str = "config") -> None:
    """Refusal with the nearest fields unless `dotted` names a field of `cls` (`engine.page_size`)."""
    name, _, rest = dotted.partition(".")
    fields = _fields(cls)
    if name not in fields:
        raise Refusal(_unknown(path, name, fields))
    if rest and not _is_dict(fields[name].hint):
        section = _section(fields[name].hint)
        if section is None:
            raise Refusal(f"{path}.{name} is one value ({_name(fields[name].hint)}); it has no field {rest!r}.")
        check_path(section, rest, f"{path}.{name}")


def describe(cls: type, prefix: str = "config") -> list[tuple[str, str, str, str]]:
    """(path, type, default, comment) of every field of `cls`, sections opened, in order."""
    rows = []
    comments = _comments(cls)
    for name, field in _fields(cls).items():
        section = _section(field.hint)
        if section is not None:
            rows += describe(section, f"{prefix}.{name}")
        else:
            default = "required" if field.required else repr(field.default)
            rows.append((f"{prefix}.{name}", _name(field.hint), default, comments.get(name, "")))
    return rows


@dataclasses.dataclass(frozen=True)
class _Field:
    hint: Any
    default: Any  # dataclasses.MISSING where the field must be given.

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING


def _fields(cls: Any) -> dict[str, _Field]:
    hints = typing.get_type_hints(cls)
    made = [(f, f.default_factory) for f in dataclasses.fields(cls) if f.init]
    return {
        f.name: _Field(hints[f.name], f.default if factory is dataclasses.MISSING else factory()) for f, factory in made
    }


def _complete(cls: type, values: Any, path: str, overrides: Sequence[str]) -> ConfigDict:
    fields = _fields(cls)
    full = f"config.{path}".rstrip(".")
    if not isinstance(values, Mapping | ConfigDict):
        raise Refusal(f"{full} is a section with fields {', '.join(fields)}; got {values!r}.")
    for name in values:
        if name not in fields:
            raise Refusal(_unknown(full, name, fields))
    filled = ConfigDict()
    for name, field in fields.items():
        try:
            value = values[name] if name in values else field.default
        except config_dict.RequiredValueError:
            value = dataclasses.MISSING
        here = f"{path}{name}"
        section = _section(field.hint)
        opened = any(o.startswith(f"{here}.") for o in overrides)
        if section and (opened or value is not None):
            given = {} if value is None or value is dataclasses.MISSING else _plain(value)
            filled[name] = _complete(section, given, f"{here}.", overrides)
        elif value is dataclasses.MISSING:
            filled[name] = config_dict.required_placeholder(_flag_type(field.hint))
        else:
            filled[name] = config_dict.placeholder(_flag_type(field.hint))
            if _is_dict(field.hint):
                converted = _convert(field.hint, value, f"config.{here}")
                filled[name] = ConfigDict({key: _plain(item) for key, item in converted.items()})
                _open_keys(filled[name], [o.removeprefix(f"{here}.") for o in overrides if o.startswith(f"{here}.")])
            elif value is not None:
                filled[name] = _plain(_convert(field.hint, value, f"config.{here}"))
    return filled


def _open_keys(values: Any, overrides: Iterable[str]) -> None:
    """Gives `values` every key that an override is about to set: the keys of a dict are its own affair."""
    for override in overrides:
        *sections, last = override.split(".")
        holder: Any = values
        for name in sections:
            if not isinstance(holder.get(name), ConfigDict):
                holder[name] = ConfigDict()
            holder = holder[name]
        if last not in holder:
            holder[last] = config_dict.placeholder(object)


def _flag_type(hint: Any) -> type:
    """The type whose flag parser reads an override; `object` reads any Python literal, None included."""
    if typing.get_origin(hint) is Literal and all(isinstance(a, str) for a in typing.get_args(hint)):
        return str
    if (typing.get_origin(hint) or hint) is tuple:
        return tuple
    inner = _without_none(hint)
    if inner in (str, Path):
        return str
    return hint if hint in (int, float, bool) else object


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(hint, value, path)
    if origin is Literal:
        if not any(value == a and type(value) is type(a) for a in args):
            raise Refusal(f"{path} must be one of {', '.join(map(repr, args))}; got {value!r}.{_hint(value, args)}")
        return value
    section = _section(hint)
    if section is not None:
        if isinstance(value, section):
            return value
        if not isinstance(value, Mapping | ConfigDict):
            raise Refusal(f"{path} is a section with fields {', '.join(_fields(section))}; got {value!r}.")
        return from_config_dict(section, value, path)
    if (origin or hint) is tuple:
        return _convert_tuple(hint, args, value, path)
    if (origin or hint) is dict and isinstance(value, Mapping | ConfigDict):
        plain = value.to_dict() if isinstance(value, ConfigDict) else value
        key, item = args or (Any, Any)
        return {_convert(key, k, f"{path} key"): _convert(item, v, f"{path}.{k}") for k, v in plain.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise Refusal(f"{path} must be {_name(hint)}; got {value!r} ({type(value).__name__}).")
    return value


def _convert_union(hint: Any, value: Any, path: str) -> Any:
    members = [a for a in typing.get_args(hint) if a is not types.NoneType]
    if value is None and len(members) < len(typing.get_args(hint)):
        return None
    if len(members) == 1 and value is not None:
        return _convert(members[0], value, path)
    # An exact type wins over a conversion: 1 stays an int in `float | int`.
    for member in sorted(members, key=lambda m: type(value) is not m):
        try:
            return _convert(member, value, path)
        except Refusal:
            continue
    raise Refusal(f"{path} must be {_name(hint)}; got {value!r} ({type(value).__name__}).")


def _convert_tuple(hint: Any, args: tuple, value: Any, path: str) -> tuple:
    if not isinstance(value, tuple | list):
        raise Refusal(f"{path} must be {_name(hint)}, a tuple or a list; got {value!r} ({type(value).__name__}).")
    if not args:
        return tuple(value)
    items = args[:1] * len(value) if args[-1] is Ellipsis else args
    if len(items) != len(value):
        raise Refusal(f"{path} must be {_name(hint)}, {len(items)} values; got {len(value)}: {value!r}.")
    return tuple(_convert(item, v, f"{path}[{i}]") for i, (item, v) in enumerate(zip(items, value, strict=True)))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_config_dict(value)
    if isinstance(value, tuple | list):
        return tuple(_plain(v) for v in value)
    return str(value) if isinstance(value, Path) else value


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [a for a in typing.get_args(hint) if a is not types.NoneType]
        return members[0] if len(members) == 1 else hint
    return hint


def _section(hint: Any) -> type | None:
    """The dataclass that a field holds, optional or not."""
    inner = _without_none(hint)
    return inner if isinstance(inner, type) and dataclasses.is_dataclass(inner) else None


def _is_dict(hint: Any) -> bool:
    return (typing.get_origin(hint) or hint) is dict


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _unknown(path: str, name: str, fields: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, fields, n=3, cutoff=0.5)
    known = f"nearest: {', '.join(near)}" if near else f"its fields: {', '.join(fields)}"
    return f"{path} has no field {name!r}; {known}."


def _hint(value: Any, choices: Sequence[Any]) -> str:
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _comments(cls: type) -> dict[str, str]:
    """The comment that stands beside each field in the source, where the source can be had."""
    try:
        source = inspect.getsource(cls)
    except OSError:
        return {}
    return dict(re.findall(r"^ {4}(\w+):[^#\n]*#\s*(.*)$", source, flags=re.MULTILINE))
