"""Named sets of XLA flags: `xla_flags/<chip>/<purpose>.txt`, loaded before JAX starts.

`<chip>` is a name of the chip table, or `gpu` where a set serves every chip of that platform.
A set file holds one flag a line, `--name=value`, and above each a comment that says why it is there.
Blank lines and further comments are free. An empty set is a file of comments.
"""

import dataclasses
import os
import re
from collections.abc import Mapping

from flexjax.hardware import chips
from flexjax.hardware.platforms import jax_started
from flexjax.refusal import Refusal
from flexjax.shipped import absent, found, home

FOLDER = "xla_flags"

# Where the compiler of each platform looks. The TPU's reads its own variable; XLA_FLAGS would make
# the CPU's compiler, which starts beside it, stop at flags that it does not know.
VARIABLES = {"cpu": "XLA_FLAGS", "gpu": "XLA_FLAGS", "tpu": "LIBTPU_INIT_ARGS"}

_FLAG = re.compile(r"--(?P<name>[a-z0-9_]+)=(?P<value>\S*)")


@dataclasses.dataclass(frozen=True)
class Flag:
    name: str  # Without the dashes.
    value: str
    reason: str  # The comment above it.

    def __str__(self) -> str:
        return f"--{self.name}={self.value}"

    @property
    def option(self) -> bool | int | float | str:
        """The value as `compile(compiler_options={name: option})` takes it: typed, where it reads as a type."""
        return as_option(self.value)


@dataclasses.dataclass(frozen=True)
class FlagSet:
    """Flags of one purpose on one chip; no name stands twice."""

    name: str  # "<chip>/<purpose>"
    variable: str  # The environment variable that they go into.
    flags: tuple[Flag, ...]

    def __str__(self) -> str:
        return " ".join(map(str, self.flags))


def as_option(value: str) -> bool | int | float | str:
    """A flag's value as a compile option: "true" is True, "3" is 3, what reads as neither is itself."""
    if value in ("true", "false"):
        return value == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def available() -> tuple[str, ...]:
    """Names of the sets that ship: "cpu/default", …"""
    root = home() / FOLDER
    return tuple(sorted(str(path.relative_to(root).with_suffix("")) for path in root.glob("*/*.txt")))


def load(name: str) -> FlagSet:
    """The set `<chip>/<purpose>`, of the current folder's xla_flags/, else of those that ship. Refusal names the file
    and line of what is wrong in it."""
    path = found(file := f"{FOLDER}/{name}.txt")
    if path is None or not re.fullmatch(r"[\w-]+/[\w.-]+", name):
        raise Refusal(f"No XLA flag set is called {name!r}: {absent(file)}. Sets that ship: {', '.join(available())}.")
    return FlagSet(name, variable_of(name), parse(path.read_text(), str(path)))


def variable_of(name: str) -> str:
    """The environment variable for a set of that name; its folder is a chip, or a platform for all its chips."""
    folder = name.split("/")[0]
    return VARIABLES[folder if folder in VARIABLES else chips.find(folder).platform]


def parse(text: str, where: str) -> tuple[Flag, ...]:
    """The flags of a set file's text; `where` is its name in errors."""
    flags: dict[str, Flag] = {}
    reason: list[str] = []
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        at = f"{where}, line {number}"
        if line.startswith("#"):
            reason.append(line.lstrip("# "))
            continue
        if not line:
            reason = []
            continue
        match = _FLAG.fullmatch(line)
        if not match:
            raise Refusal(f"{at}: a line is a comment (#) or one flag as --name=value; got {line!r}.")
        flag = Flag(match["name"], match["value"], " ".join(reason))
        if not flag.reason:
            raise Refusal(f"{at}: {flag} has no reason. Say in a comment directly above it why it is set.")
        if flag.name in flags:
            raise Refusal(f"{at}: --{flag.name} is already set to {flags[flag.name].value}. Keep one of the two.")
        flags[flag.name] = flag
        reason = []
    return tuple(flags.values())


def apply(flag_set: FlagSet) -> None:
    """Puts the set into the environment, before flags that are there already (of two, XLA takes the last).

    Raises Refusal once JAX has started a backend, because the flags would then be ignored.
    """
    if jax_started():
        raise Refusal(
            f"XLA flags must be set before JAX starts its first backend, and it has started; the set "
            f"{flag_set.name!r} would be ignored. Apply it before the first use of JAX."
        )
    given = os.environ.get(flag_set.variable, "")
    os.environ[flag_set.variable] = " ".join(filter(None, [str(flag_set), given]))


def in_force() -> Mapping[str, str]:
    """What the environment gives the compilers now, by variable; for the record."""
    return {variable: os.environ.get(variable, "") for variable in sorted(set(VARIABLES.values()))}


def as_text(options: Mapping[str, bool | int | float | str] | None) -> str:
    """Options that are given to single compiles, in the form of flags; for the record."""
    plain = {name: str(value).lower() if isinstance(value, bool) else value for name, value in (options or {}).items()}
    return " ".join(f"--{name}={value}" for name, value in plain.items())
