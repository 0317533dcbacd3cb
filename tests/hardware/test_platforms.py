import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flexjax.hardware import platforms

# A machine with no accelerator; `chosen` fails where JAX has started before it could be told.
BARE = """
import os, pathlib, sys
pathlib.Path.glob = lambda self, pattern: iter(())
def chosen():
    import jax
    from flexjax.hardware import platforms
    assert not platforms.jax_started()
    return jax.config.jax_platforms, os.environ["JAX_PLATFORMS"], jax.devices()[0].platform
"""


class Config:
    """Of JAX: None where nobody has chosen."""

    def __init__(self, jax_platforms: str | None):
        self.jax_platforms = jax_platforms

    def update(self, name: str, value: str) -> None:
        setattr(self, name, value)


@pytest.fixture
def bare(monkeypatch):
    """No accelerator, no choice, and JAX not imported."""
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    monkeypatch.setitem(sys.modules, "jax", None)
    return monkeypatch


@pytest.fixture
def imported(bare):
    """JAX imported with such a choice, and started or not; gives its config."""

    def of(choice: str | None, started: bool = False) -> Config:
        config = Config(choice)
        bare.setitem(sys.modules, "jax", SimpleNamespace(config=config))
        bridge = SimpleNamespace(backends_are_initialized=lambda: started)
        bare.setitem(sys.modules, "jax._src.xla_bridge", bridge)
        return config

    return of


def test_a_machine_without_accelerators_keeps_to_its_cpu(bare):
    platforms.cpu_unless_accelerated()
    assert os.environ["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize(
    ("name", "value"), [("JAX_PLATFORMS", "tpu,cpu"), ("JAX_PLATFORMS", ""), ("JAX_PLATFORM_NAME", "tpu")]
)
def test_a_platform_that_was_asked_for_stays(bare, imported, name, value):
    bare.setenv(name, value)
    config = imported(None)
    platforms.cpu_unless_accelerated()
    assert os.environ[name] == value
    assert os.environ.get("JAX_PLATFORMS", value) == value
    assert config.jax_platforms is None


def test_an_accelerator_is_left_to_jax(bare, imported):
    found = {"accel*": [Path("/dev/accel0")]}
    bare.setattr(Path, "glob", lambda self, pattern: iter(found.get(pattern, ())))
    config = imported(None)
    platforms.cpu_unless_accelerated()
    assert "JAX_PLATFORMS" not in os.environ
    assert config.jax_platforms is None


def test_jax_that_is_imported_but_not_started_is_told(imported):
    config = imported(None)
    platforms.cpu_unless_accelerated()
    platforms.cpu_unless_accelerated()
    assert (config.jax_platforms, os.environ["JAX_PLATFORMS"]) == ("cpu", "cpu")


@pytest.mark.parametrize(("choice", "started"), [("cuda", False), (None, True), ("cpu", True)])
def test_what_jax_was_told_or_has_started_stays(imported, choice, started):
    config = imported(choice, started)
    platforms.cpu_unless_accelerated()
    assert config.jax_platforms == choice
    assert "JAX_PLATFORMS" not in os.environ


def test_the_module_is_usable_before_jax():
    code = "import sys, flexjax.hardware.platforms, flexjax; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "first_use",
    [
        "from flexjax import LLM, SamplingParams",
        "import jax; from flexjax import LLM",
        "from flexjax.engine import LLM\ntry: LLM.load('none')\nexcept ValueError: pass",
    ],
)
def test_the_librarys_first_use_chooses_before_jax_starts(first_use):
    """Beside the extra `virtual` nothing else keeps the complaints of absent chips from stderr."""
    free = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")}
    command = [sys.executable, "-c", f"{BARE}\n{first_use}\nprint(*chosen())"]
    done = subprocess.run(command, env=free, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("cpu cpu cpu\n", "", 0)
