"""What is built for others: the source distribution, the wheel made of it, and the main job run from that wheel."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from flexjax.shipped import home

ROOT = home()
SHARED = ("configs", "xla_flags", "models/weights")  # Beside the code, found by path.

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="not a checkout: there is nothing to build"),
]
Run = Callable[..., subprocess.CompletedProcess[str]]


def beside_the_code() -> set[str]:
    files = [p for folder in SHARED for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    return {str(p.relative_to(ROOT)) for p in files}


def modules() -> set[str]:
    return {str(p.relative_to(ROOT)) for room in ("flexjax", "models") for p in (ROOT / room).rglob("*.py")}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The source distribution; nothing is written into the tree."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "egg").mkdir()
    steps = ["-q", "egg_info", "--egg-base", str(folder / "egg"), "sdist", "--dist-dir", str(folder)]
    subprocess.run([sys.executable, "setup.py", *steps], cwd=ROOT, check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "-w", str(folder), str(source)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Run:
    """Runs a command of an environment that has the wheel, and of this one the dependencies, in an empty folder."""
    environment, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    # A folder that is named so is searched last, and its own .pth files, which lead to the checkout, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(environment / "bin" / "python")]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", "--no-compile", str(wheel)], check=True)
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "JAX_PLATFORMS")}

    def run(command: str, *args: str) -> subprocess.CompletedProcess[str]:
        full = [str(environment / "bin" / command), *args]
        return subprocess.run(full, cwd=folder, env=variables, capture_output=True, text=True, check=False)

    return run


def test_the_source_distribution_has_what_a_build_needs(source):
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = {str(p.relative_to(ROOT)) for kind in ("cc", "h", "inc") for p in (ROOT / "flexjax").rglob(f"*.{kind}")}
    assert native | modules() | beside_the_code() | {"LICENSE", "README.md", "pyproject.toml"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc")) or name.startswith("tests")]


def test_a_wheel_of_it_has_every_module_kernel_and_shipped_file_once(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for name in beside_the_code():
            assert archive.read(f"flexjax/share/{name}") == (ROOT / name).read_bytes()
    rest = {name for name in names if not name.startswith("flexjax/share/") and ".dist-info/" not in name}
    tables = {str(p.relative_to(ROOT)) for p in (ROOT / "flexjax").rglob("*") if p.suffix in (".toml", ".html")}
    built = {str(p.relative_to(ROOT)) for p in (ROOT / "flexjax").rglob("_cpu.so")}
    assert rest == modules() | tables | built
    assert len(names) == len(set(names))
    assert sum(name.endswith("pydoc-7m/model.safetensors") for name in names) == 1


def test_the_code_that_runs_is_the_wheels(installed):
    code = "import flexjax.jobs.bench, models.transformer as m; print(flexjax.__file__, m.__file__, sep='\\n')"
    files = installed("python", "-c", code).stdout.split()
    assert len(files) == 2
    assert all("site-packages" in file and not file.startswith(sys.prefix) for file in files), files


def test_what_ships_is_found_and_what_does_not_is_refused(installed):
    assert "configs/bench_ci.py" in installed("flexjax", "--help").stdout
    assert "--config.loop.steps" in installed("flexjax", "--config=configs/train/smoke.py", "--help").stdout
    wrong = installed("flexjax", "--config=configs/bench_ci.py", "--config.model=models/none")
    assert wrong.returncode == 2
    assert "error: There is no model at models/none: neither" in wrong.stderr
    assert "models/weights/pydoc-7m" in wrong.stderr


def test_the_library_answers(installed):
    code = """
from flexjax import LLM, SamplingParams
llm = LLM.load("models/weights/pydoc-7m", max_model_len=32, max_num_seqs=1, max_num_batched_tokens=16)
print(llm.generate("def mean(values):", SamplingParams(temperature=0, max_tokens=4))[0].outputs[0].token_ids)
"""
    answered = installed("python", "-c", code)
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.count(",") == 3
    assert not answered.stderr


def test_the_short_main_job_is_valid(installed):
    done = installed("flexjax", "--config=configs/bench_ci.py", "--config.xla_flags=cpu/default", "--workdir=results")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs valid" in done.stdout
    assert "matmul: C++" in done.stdout or not list((ROOT / "flexjax").rglob("_cpu.so"))
