"""Block sizes of kernels as settings: `<op>.<module>.<CONSTANT>`, an upper-case whole number of a kernel's module, or
one by chip.

A kernel reads its constants while it is traced, so a program lowered under `block_sizes` has them as given there. What
a search finds is for the kernel's author to write down; nothing sets them at run time.
"""

import contextlib
import difflib
import importlib
import importlib.util
from collections.abc import Iterator
from types import ModuleType

from flexjax.kernels import ByChip
from flexjax.lab.cost import Candidate
from flexjax.refusal import Refusal


def is_block_size(name: str) -> bool:
    return "." in name


@contextlib.contextmanager
def block_sizes(candidate: Candidate) -> Iterator[None]:
    """Within it, the kernels have the candidate's block sizes; its flags are passed over. Not for several threads.

    Refusal for a kernel or constant that is not there, or a value that is not a positive whole number.
    """
    wanted = {name: value for name, value in candidate.items() if is_block_size(name)}
    found = {name: find(name) for name in wanted}
    for name, value in wanted.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Refusal(f"A block size is a positive whole number; {name} is given {value!r}.")
    before = {name: getattr(module, constant) for name, (module, constant) in found.items()}
    try:
        for name, (module, constant) in found.items():
            setattr(module, constant, wanted[name])
        yield
    finally:
        for name, (module, constant) in found.items():
            setattr(module, constant, before[name])


def find(name: str) -> tuple[ModuleType, str]:
    """The module and constant that `<op>.<module>.<CONSTANT>` names; Refusal tells the near ones."""
    path, _, constant = name.rpartition(".")
    full = f"flexjax.kernels.{path}"
    try:
        known = importlib.util.find_spec(full) is not None and path.count(".") == 1
    except ModuleNotFoundError:
        known = False
    if not known:
        raise Refusal(f"A block size is named <op>.<module>.<CONSTANT>; there is no kernel {path!r} ({full}).")
    module = importlib.import_module(full)
    sizes = [
        n for n, v in vars(module).items() if n.isupper() and isinstance(v, int | ByChip) and not isinstance(v, bool)
    ]
    if constant not in sizes:
        near = difflib.get_close_matches(constant, sizes, n=3) or sizes
        raise Refusal(f"{full} has no block size {constant!r}; it has {', '.join(near) or 'none'}.")
    return module, constant
