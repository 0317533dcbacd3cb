"""Text that is on any machine with Python: the running interpreter's standard library.

Three kinds of documents, each named by what it holds:
  - `argparse.py`, `json/decoder.py`: a module's source, whole.
  - `help(argparse)`: the same module's documentation, as signatures and docstrings.
  - `topic(with)`: one page of the language reference (`pydoc_data.topics`).

The split is by module, never by position: all text of a module in `HELD_OUT` stays out of training,
its documentation and its accelerator's included. Needs nothing but the standard library.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

HELD_OUT = (
    "argparse",
    "bisect",
    "calendar",
    "cmd",
    "csv",
    "fractions",
    "graphlib",
    "heapq",
    "hmac",
    "pprint",
    "queue",
    "sched",
    "secrets",
    "shelve",
    "shlex",
    "statistics",
    "tempfile",
    "textwrap",
)

# Written in C: their documentation is read from the running interpreter.
BUILT_IN = (
    "array",
    "binascii",
    "builtins",
    "cmath",
    "errno",
    "faulthandler",
    "gc",
    "itertools",
    "marshal",
    "math",
    "select",
    "signal",
    "sys",
    "time",
    "unicodedata",
    "zlib",
    "_collections",
    "_functools",
    "_io",
    "_operator",
    "_random",
    "_socket",
    "_struct",
    "_thread",
    "_weakref",
)

_SKIPPED_PARTS = {
    *("test", "tests", "idle_test", "turtledemo"),
    *("site-packages", "dist-packages", "ensurepip", "__pycache__"),
    *("encodings", "idlelib", "lib2to3"),  # Tables, a graphical editor, a frozen grammar.
}
_SKIPPED_NAMES = ("_sysconfigdata", "__phello__", "pydoc_data/topics", "pydoc_data/module_docs")


@dataclasses.dataclass(frozen=True)
class Document:
    """A name that says where the text comes from, and the text."""

    name: str
    text: str


def train_documents() -> list[Document]:
    """Everything but the held-out modules, in a fixed order."""
    documents = [d for d in _sources() if not is_held_out(d.name)]
    documents += [h for d in documents if (h := help_document(d)) is not None]
    documents += _topics()
    documents += _built_in_help()
    return documents


def held_out_documents() -> list[Document]:
    """The sources of the modules in `HELD_OUT`, docstrings and all, in a fixed order."""
    return [d for d in _sources() if is_held_out(d.name)]


def is_held_out(name: str) -> bool:
    """Whether a source document belongs to a module in `HELD_OUT`."""
    return name.removesuffix(".py").split("/")[0] in HELD_OUT


def fingerprint(documents: Iterable[Document]) -> str:
    """Twelve hex digits that change with any name or text: two runs with the same saw the same corpus."""
    digest = hashlib.sha256()
    for d in documents:
        digest.update(f"{d.name}\0{d.text}\0".encode())
    return digest.hexdigest()[:12]


def help_document(source: Document) -> Document | None:
    """A module's signatures and docstrings as `help` lays them out; None where nothing is documented."""
    tree = ast.parse(source.text)
    module = source.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    body = [part for node in tree.body for part in _describe(node)]
    intro = ast.get_docstring(tree)
    if not body and not intro:
        return None
    head = f"Help on module {module}:\n"
    text = "\n".join([head, *([intro, ""] if intro else []), *body])
    return Document(f"help({module})", text.rstrip() + "\n")


def _describe(node: ast.AST) -> Iterator[str]:
    """The lines of one documented class or function, followed by an empty one."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (doc := ast.get_docstring(node)):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        yield f"def {node.name}({ast.unparse(node.args)}){returns}"
        yield from _indented(doc.splitlines())
        yield ""
    elif isinstance(node, ast.ClassDef):
        members = [line for child in node.body for line in _describe(child)]
        doc = ast.get_docstring(node)
        if doc or members:
            bases = ", ".join(ast.unparse(b) for b in node.bases)
            yield f"class {node.name}({bases})" if bases else f"class {node.name}"
            yield from _indented([*doc.splitlines(), ""] if doc else [])
            yield from _indented(members)


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"    {line}".rstrip() for line in lines)


@functools.cache
def _sources() -> tuple[Document, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    documents = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if _SKIPPED_PARTS.intersection(Path(name).parts) or name.startswith(_SKIPPED_NAMES):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            documents.append(Document(name, text))
    return tuple(documents)


def _topics() -> list[Document]:
    from pydoc_data import topics

    return [Document(f"topic({name})", text.strip() + "\n") for name, text in sorted(topics.topics.items())]


def _built_in_help() -> list[Document]:
    documents = []
    for name in BUILT_IN:
        if name not in sys.builtin_module_names and importlib.util.find_spec(name) is None:
            continue
        module = importlib.import_module(name)
        lines = [f"Help on module {name}:", "", *(inspect.getdoc(module) or "").splitlines(), ""]
        for key, value in sorted(vars(module).items()):
            if not key.startswith("_") and callable(value):
                lines += _live_help(key, value)
        documents.append(Document(f"help({name})", "\n".join(lines).rstrip() + "\n"))
    return documents


def _live_help(name: str, value: object) -> list[str]:
    """One live class or function, described like `_describe`."""
    doc = inspect.getdoc(value)
    if not doc:
        return []
    kind = "class" if inspect.isclass(value) else "def"
    lines = [f"{kind} {name}{_signature(value)}", *_indented(doc.splitlines()), ""]
    if inspect.isclass(value):
        for key, member in sorted(vars(value).items()):
            if not key.startswith("_") and callable(member):
                lines += _indented(_live_help(key, member))
    return lines


def _signature(value: object) -> str:
    try:
        return str(inspect.signature(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # Many C functions have none; their docstring's first line shows it.
        return ""
