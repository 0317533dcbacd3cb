"""The house is in order: arrows run one way, rooms have doors, nothing of one machine is in the tree."""

import ast
import re
import subprocess
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Room → the rooms it may import. Single modules at the root of flexjax (config, model, …) are open to all
# and import no room; `launch` is the door from outside, with `processes` behind it.
ARROWS = {
    "hardware": set(),
    "data": set(),
    "kernels": {"hardware"},
    "quantize": {"kernels", "hardware"},
    "nn": {"quantize", "kernels", "hardware"},
    "engine": {"data", "nn", "quantize", "kernels", "hardware"},  # Data: a tokenizer's files.
    "lab": {"kernels", "hardware"},  # On a CPU its limits are what our own loops reach.
    "records": {"hardware"},
    "train": {"data", "nn", "hardware"},
    "bench": {
        "data",
        "engine",
        "nn",
        "quantize",
        "records",
        "kernels",
        "hardware",
    },  # Kernels: which bodies a side runs.
    "sweep": set(),
    "tune": {"lab", "engine", "nn", "kernels", "hardware"},
    "virtual": {"records", "train", "engine", "nn", "quantize", "kernels", "hardware"},
    "jobs": {
        "bench",
        "data",
        "lab",
        "nn",
        "train",
        "sweep",
        "tune",
        "virtual",
        "records",
        "engine",
        "quantize",
        "kernels",
        "hardware",
    },
    "processes": {"engine", "hardware"},
    "launch": {"processes", "jobs", "hardware"},
    "models": {"nn"},
}

# Tests of a whole room, which no one module mirrors.
ROOM_TESTS = {
    "engine/test_forced.py",
    "engine/test_kinds.py",
    "models/transformer/test_parity.py",
    "models/transformer/test_real_weights.py",
    "train/test_shipped.py",
}

# Files past 600 lines, each with its reason.
LONG = {}


def imported_rooms(source: str) -> set[str]:
    """Rooms of flexjax (or "models") that a module imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    return {p[1] for p in parts if p[0] == "flexjax" and len(p) > 1} | {"models" for p in parts if p[0] == "models"}


def modules() -> list[tuple[str, Path]]:
    """(room, file) of every module of the product but the face, flexjax/__init__.py."""
    flexjax = [p for p in sorted((ROOT / "flexjax").rglob("*.py")) if p != ROOT / "flexjax" / "__init__.py"]
    rooms = [(p.relative_to(ROOT / "flexjax").parts[0].removesuffix(".py"), p) for p in flexjax]
    return rooms + [("models", p) for p in sorted((ROOT / "models").rglob("*.py"))]


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is tracked cannot be told")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_imports_are_found_wherever_they_stand():
    source = """
        import jax, flexjax.engine.llm
        from flexjax import model, jobs
        def f():
            from models.transformer import params
            from flexjax.kernels.attention import api
    """
    assert imported_rooms(textwrap.dedent(source)) == {"engine", "model", "jobs", "models", "kernels"}


def test_arrows_run_one_way():
    open_to_all = {p.stem for p in (ROOT / "flexjax").glob("*.py")} - {"launch", "processes"}
    arrows = {room: set() for room in open_to_all} | ARROWS
    unknown = {room for room, _ in modules()} - arrows.keys()
    assert not unknown, f"rooms that ARROWS does not have: {unknown}"
    wrong = [
        f"{path.relative_to(ROOT)} imports {target}; {room} may import {', '.join(sorted(arrows[room])) or 'no room'}"
        for room, path in modules()
        for target in sorted(imported_rooms(path.read_text()) - arrows[room] - open_to_all - {room})
    ]
    assert not wrong, "\n".join(wrong)


def test_the_arrows_have_no_cycle():
    def below(room: str, path: tuple[str, ...] = ()) -> None:
        assert room not in path, f"{' → '.join(path)} → {room}"
        for target in ARROWS[room]:
            below(target, (*path, room))

    for room in ARROWS:
        below(room)


def test_every_module_says_what_it_is():
    silent = [
        str(path.relative_to(ROOT))
        for _, path in modules()
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent, f"modules without a docstring: {silent}"


def test_every_room_has_a_door():
    folders = {p.parent for _, p in modules()}
    closed = [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").is_file()]
    assert not closed, f"packages without __init__.py: {closed}"


def past_doors(path: Path) -> list[str]:
    """Modules inside other rooms from which a file of the product imports names. Hardware has a door to each module:
    flags of XLA are set before JAX is imported."""
    own = list(path.relative_to(ROOT).with_suffix("").parts)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    modules = [node.module.split(".") for node in nodes if node.module]
    modules = [m for m in modules if m[:2] != ["flexjax", "hardware"] and not ROOT.joinpath(*m).is_dir()]
    return [".".join(m) for m in modules if (room := room_of(m)) and own[: len(room)] != room]


def room_of(module: list[str]) -> list[str] | None:
    """The room in which a module of ours stands, an op being a room of its own; None for one that stands in none."""
    depth = 3 if module[:2] == ["flexjax", "kernels"] and ROOT.joinpath(*module[:3]).is_dir() else 2
    room = module[:depth]
    return room if room[0] in ("flexjax", "models") and ROOT.joinpath(*room).is_dir() else None


def test_a_room_is_entered_through_its_door():
    wrong = [f"{path.relative_to(ROOT)} imports from {name}" for _, path in modules() for name in past_doors(path)]
    assert not wrong, "rooms export in their __init__.py what others use:\n" + "\n".join(wrong)


def test_an_import_past_a_door_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for folder in ("flexjax/engine/device", "flexjax/kernels/scan", "flexjax/kernels/convolution"):
        (tmp_path / folder).mkdir(parents=True)
    file = tmp_path / "flexjax/kernels/scan/api.py"
    file.write_text(
        "from flexjax.engine import Engine\nfrom flexjax.engine.device import Step\nfrom flexjax.config import read\n"
        "from flexjax.kernels.scan.base import scan\nfrom flexjax.kernels.case import Case\n"
        "from flexjax.hardware.mesh import make\n"
        "def f():\n    from flexjax.engine.device.step import Step\n"
        "    from flexjax.kernels.convolution.api import convolve\n"
    )
    assert past_doors(file) == ["flexjax.engine.device.step", "flexjax.kernels.convolution.api"]


def test_the_front_of_the_house():
    needed = ["setup.py", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "constraints.txt"]
    needed += [".ci/run", "flexjax", "models", "configs", "launch", "tests", "xla_flags"]
    missing = [name for name in needed if not (ROOT / name).exists()]
    assert not missing


def test_tests_mirror_the_tree():
    tests = {str(p.relative_to(ROOT / "tests")) for p in (ROOT / "tests").rglob("test_*.py")}
    homeless = []
    for name in sorted(tests - ROOM_TESTS - {Path(__file__).name}):
        place = Path(name).with_name(Path(name).name.removeprefix("test_"))
        sources = [ROOT / "flexjax" / place, ROOT / place, ROOT / "tests" / place]
        if not any(s.is_file() or s.with_suffix("").is_dir() or s.with_suffix(".sh").is_file() for s in sources):
            homeless.append(name)
    assert not homeless, f"no module of the same name and place: {homeless}"


def test_files_are_read_in_one_sitting():
    long = {
        str(p.relative_to(ROOT)): n
        for p in tracked()
        if p.suffix == ".py"
        if (n := len(p.read_text().splitlines())) > 600
    }
    assert long.keys() == LONG.keys(), f"files past 600 lines: {long}; those with a reason: {LONG}"


def test_the_tree_names_no_machine():
    # Written in pieces, so that this file does not find itself.
    hosts = "|".join(name.replace("!", r"\.") for name in ["pypi!org", "pythonhosted!org", "debian!org", "npmjs!org"])
    machine = re.compile(rf"({hosts}|(?<![\w.~}}])/(work|root|home|Users|tmp)/\w)")
    found = []
    for path in tracked():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{i}: {line.strip()[:100]}"
            for i, line in enumerate(lines, 1)
            if machine.search(line)
        ]
    assert not found, "\n".join(found)
