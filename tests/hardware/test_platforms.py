import os
import subprocess
import sys
from pathlib import Path

from flexjax.hardware import platforms


def test_a_machine_without_accelerators_keeps_to_its_cpu(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    platforms.cpu_unless_accelerated()
    assert os.environ["JAX_PLATFORMS"] == "cpu"


def test_a_platform_that_was_asked_for_stays(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    platforms.cpu_unless_accelerated()
    assert os.environ["JAX_PLATFORMS"] == "tpu,cpu"


def test_an_accelerator_is_left_to_jax(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    found = {"accel*": [Path("/dev/accel0")]}
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(found.get(pattern, ())))
    platforms.cpu_unless_accelerated()
    assert "JAX_PLATFORMS" not in os.environ


def test_the_module_is_usable_before_jax():
    code = "import sys, flexjax.hardware.platforms; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
