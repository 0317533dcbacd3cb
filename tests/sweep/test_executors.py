"""Executors run tasks as processes: what they leave, how many at once, what happens when they are stopped."""

import builtins
import importlib.util
import os
import subprocess
import sys
import time

import pytest

from flexjax.sweep import ExecutorConfig, Task, executors

# Stands in for the launcher: the config file is the program, given its workdir.
COMMAND = lambda config, workdir: [sys.executable, str(config), str(workdir)]


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Makes a task of a program; `sys.argv[1]` is its workdir."""
    monkeypatch.setattr(executors, "_command", COMMAND)
    return lambda key, program: Task(key, f"import sys, os, time, pathlib\n{program}", tmp_path / key)


def test_processes_leave_their_log_and_status(task):
    tasks = [task("a", "print('said')"), task("b", "sys.exit(3)"), task("c", "os.kill(os.getpid(), 9)")]
    outcomes = {o.task.key: o for o in executors.run_in_processes(tasks, ExecutorConfig(parallel=2))}
    assert {key: o.status for key, o in outcomes.items()} == dict(a=0, b=3, c=-9)
    assert (tasks[0].folder / "log.txt").read_text() == "said\n"
    assert all(o.seconds > 0 for o in outcomes.values())


@pytest.mark.parametrize("parallel", [1, 3])
def test_as_many_run_at_once_as_asked(task, tmp_path, parallel):
    program = f"""
folder = pathlib.Path({str(tmp_path)!r})
mine = folder / f"running-{{os.getpid()}}"
mine.touch()
count = lambda pattern: len(list(folder.glob(pattern)))
deadline = time.monotonic() + {0.5 if parallel == 1 else 60}  # Where one runs at once, another is waited for in vain.
while (seen := count("running-*")) < 2 and not count("seen-*") and time.monotonic() < deadline:
    time.sleep(0.02)
(folder / f"seen-{{os.getpid()}}").write_text(str(seen))
time.sleep(0.5)  # So that the others see it too.
mine.unlink()
"""
    list(executors.run_in_processes([task(k, program) for k in "abc"], ExecutorConfig(parallel=parallel)))
    seen = [int(file.read_text()) for file in tmp_path.glob("seen-*")]
    assert len(seen) == 3
    assert max(seen) <= parallel
    assert (max(seen) > 1) == (parallel > 1)


def test_closing_ends_what_runs_and_starts_nothing_more(task, tmp_path):
    slow = f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(60)"
    later = f"pathlib.Path({str(tmp_path / 'later')!r}).touch()"
    outcomes = executors.run_in_processes(
        [task("a", ""), task("b", slow), task("c", later)], ExecutorConfig(parallel=2)
    )
    next(outcomes)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    began = time.monotonic()
    outcomes.close()
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


ON_RAY = """
import pathlib, sys
sys.modules["amdsmi"] = None  # tests/jobs/test_sweep.py says why.
from flexjax.sweep import ExecutorConfig, Task, executors
task = Task("a", sys.argv[1], pathlib.Path(sys.argv[2]))
list(executors.run_on_ray([task], ExecutorConfig("ray", keep=("log.txt",))))
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra 'search')")
def test_ray_runs_points_at_the_priority_of_who_asks(tmp_path):
    """By the real launcher, which imports the program as a config and then finds none in it. In a process of its own:
    Ray forks, which JAX warns of."""
    program = "import os; print('nice', os.nice(0))"
    command = [sys.executable, "-c", ON_RAY, program, str(tmp_path / "a")]
    subprocess.run(command, check=True, cwd=executors.home(), capture_output=True)
    assert f"nice {os.nice(0)}\n" in (tmp_path / "a" / "log.txt").read_text()


def test_a_far_run_brings_back_the_files_asked_for(task, tmp_path):
    program = """
folder = pathlib.Path(sys.argv[1])
(folder / "results.parquet").mkdir()
for name in ("record.json", "large.bin", "results.parquet/part"):
    (folder / name).write_text(name)
print(os.getcwd())
"""
    status, seconds, files = executors._run_far(
        task("a", program).config_file, ("*.json", "results.parquet/*", "log.txt")
    )
    assert status == 0 and seconds > 0
    assert set(files) == {"record.json", "results.parquet/part", "log.txt"}
    assert files["log.txt"].decode().strip() == str(executors.home())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ModuleNotFoundError("ray"), r"Install the extra 'search'.*or set executor.kind='processes'"),
        (KeyError("libamd_smi.so"), r"'libamd_smi.so' is missing\). pip uninstall amdsmi, or set executor.kind"),
    ],
)
def test_a_ray_that_cannot_be_imported_is_explained(monkeypatch, task, error, says):
    real = builtins.__import__

    def no_ray(name, *args, **kwargs):
        if name == "ray":
            raise error
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_ray)
    with pytest.raises(ValueError, match=says):
        next(executors.run_on_ray([task("a", "")], ExecutorConfig("ray")))


@pytest.mark.parametrize("field", ["parallel", "cpus_per_point"])
def test_none_at_once_is_refused(field):
    with pytest.raises(ValueError, match="must be at least 1"):
        ExecutorConfig(**{field: 0})


def test_the_real_command_is_the_launcher(tmp_path):
    command = executors._command(tmp_path / "config.py", tmp_path)
    assert command[:3] == [sys.executable, "-m", "flexjax.launch"]
    assert importlib.util.find_spec(command[2]) is not None
