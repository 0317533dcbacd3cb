"""The launcher: what it reads, what it refuses, and how it ends."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flexjax.jobs
from flexjax import config as config_lib
from flexjax import launch
from flexjax.refusal import Refusal
from flexjax.shipped import home

JOBS = [path.stem for path in sorted(Path(flexjax.jobs.__file__).parent.glob("[a-z]*.py"))]

JOB = '''
"""Writes down what it was given."""
import dataclasses, json
from flexjax.refusal import Refusal

@dataclasses.dataclass(frozen=True)
class Engine:
    max_num_seqs: int = 8  # Sequences in a step.
    page_size: int | None = None

@dataclasses.dataclass(frozen=True)
class Config:
    engine: Engine = Engine()
    scenarios: tuple[str, ...] = ("Offline",)
    warm: bool = True
    end: str = "well"

def run(config, workdir):
    if config.end == "refuse":
        raise Refusal("end must be well; got 'refuse'.")
    if config.end == "bug":
        int("x")
    if config.end == "interrupt":
        raise KeyboardInterrupt
    (workdir / "seen.json").write_text(json.dumps(dataclasses.asdict(config)))
    return 1 if config.end == "invalid" else 0
'''

CONFIG = '''
"""A lab note."""
from ml_collections import ConfigDict

def get_config(end="well"):
    return ConfigDict(dict(job="note_down", engine=dict(max_num_seqs=4), end=end))
'''


@pytest.fixture
def note(tmp_path, monkeypatch) -> Path:
    """A config file whose job writes its config into the workdir."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "note_down.py").write_text(JOB)
    monkeypatch.setattr(flexjax.jobs, "__path__", [*flexjax.jobs.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "flexjax.jobs.note_down", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.py").write_text(CONFIG)
    return tmp_path / "note.py"


def seen(workdir: Path) -> dict:
    return json.loads((workdir / "seen.json").read_text())


def test_overrides_reach_the_job_even_where_the_file_is_silent(note, tmp_path, capsys):
    args = [
        "--config.engine.page_size=32",
        "--config.scenarios=Server",
        "--config.scenarios=Offline",
        "--noconfig.warm",
    ]
    assert launch.run([f"--config={note}", f"--workdir={tmp_path / 'w'}", "--noconfig.warm", *args]) == 0
    assert seen(tmp_path / "w") == dict(
        engine=dict(max_num_seqs=4, page_size=32), scenarios=["Server", "Offline"], warm=False, end="well"
    )
    assert "flexjax note_down: " in capsys.readouterr().out


def test_the_workdir_is_named_by_date_and_config(note):
    assert launch.run([f"--config={note}"]) == 0
    (workdir,) = Path("runs").iterdir()
    assert workdir.name.endswith("-note")
    assert seen(workdir)["engine"]["max_num_seqs"] == 4


@pytest.mark.parametrize(("end", "status"), [("well", 0), ("invalid", 1), ("refuse", 2), ("interrupt", 130)])
def test_exit_status(note, end, status, tmp_path):
    assert launch.run([f"--config={note}:{end}", f"--workdir={tmp_path / 'w'}"]) == status


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--config.engin.max_num_seqs=1"], "config has no field 'engin'; nearest: engine"),
        (["--config.engine.max_seqs=1"], "config.engine has no field 'max_seqs'; nearest: max_num_seqs"),
        (["--config.engine.max_num_seqs=few"], "few"),
        (["--config.engine.page_size=few"], "config.engine.page_size must be int; got 'few'"),
        (["--config.job=note_up"], "config.job must be one of .*note_down.* got 'note_up'. Did you mean 'note_down'"),
        (["--workdri=x"], "Unknown command line flag 'workdri'"),
        (["stray"], "got 'stray'"),
        (["--config.end=refuse"], "error: end must be well; got 'refuse'"),
    ],
)
def test_wrong_input_gets_one_clear_line(note, args, says, tmp_path, capsys):

    assert launch.run([f"--config={note}", f"--workdir={tmp_path / 'w'}", *args]) == 2
    error = capsys.readouterr().err
    assert re.search(says, error), error
    assert "Traceback" not in error


def test_a_missing_config_names_those_that_ship(capsys):
    assert launch.run([]) == 2
    assert launch.run(["--config=configs/none.py"]) == 2
    missing, wrong = capsys.readouterr().err.split("error: ")[1:]
    assert "--config=PATH is missing" in missing
    assert "no such file" in wrong
    for path in (home() / "configs").glob("*.py"):
        assert f"configs/{path.name}" in missing
        assert f"configs/{path.name}" in wrong


def test_a_bug_keeps_its_traceback_and_debug_shows_all(note, tmp_path):
    workdir = f"--workdir={tmp_path / 'w'}"
    with pytest.raises(Refusal, match="refuse"):
        launch.run([f"--config={note}", workdir, "--config.end=refuse", "--debug"])
    # Of the same type as a refusal's base, and raised in the job's own file: still a bug.
    with pytest.raises(ValueError, match="invalid literal"):
        launch.run([f"--config={note}", workdir, "--config.end=bug"])


def test_help_teaches(note, capsys):
    assert launch.run(["--help"]) == 0
    general = capsys.readouterr().out
    assert re.search(r"^  note_down +Writes down what it was given.$", general, re.MULTILINE)
    assert "--config.FIELD=VALUE" in general
    assert launch.run([f"--config={note}", "--help"]) == 0
    fields = capsys.readouterr().out
    assert "--config.engine.max_num_seqs  int, 8" in fields
    assert "Sequences in a step." in fields
    assert not Path("runs").exists()


def test_flags_are_set_before_jax_is_imported():
    code = "import sys, flexjax.launch; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=home(), check=False).returncode == 0


def test_a_flag_that_the_compiler_does_not_know_is_refused_by_name(note, tmp_path, capsys):
    (tmp_path / "xla_flags" / "cpu").mkdir(parents=True)
    (tmp_path / "xla_flags" / "cpu" / "wild.txt").write_text("# why\n--xla_cpu_run_faster=true\n")
    assert launch.run([f"--config={note}", "--config.xla_flags=cpu/wild", f"--workdir={tmp_path / 'w'}"]) == 2
    assert "--xla_cpu_run_faster: the compiler does not know it" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("flag", ["--config.distributed", "--config.distributed=true"])
def test_processes_are_joined_before_the_job(note, tmp_path, monkeypatch, flag):
    joined = []
    monkeypatch.setattr(launch.distributed, "join", lambda: joined.append((tmp_path / "w" / "seen.json").exists()))
    assert launch.run([f"--config={note}", flag, f"--workdir={tmp_path / 'w'}"]) == 0
    assert joined == [False]
    assert seen(tmp_path / "w")["end"] == "well"


def test_a_job_of_one_process_is_refused_before_the_processes_are_joined(note, tmp_path, monkeypatch, capsys):
    file = tmp_path / "jobs" / "note_down.py"
    file.write_text(file.read_text() + '\nPROCESSES = "one"\n')
    monkeypatch.setattr(launch.distributed, "join", lambda: pytest.fail("joined"))
    assert launch.run([f"--config={note}", "--config.distributed", f"--workdir={tmp_path / 'w'}"]) == 2
    assert "'note_down' runs in one process, and distributed=True joins several" in capsys.readouterr().err


def test_jobs_say_how_they_run_over_several_processes():
    stated = {name: getattr(importlib.import_module(f"flexjax.jobs.{name}"), "PROCESSES", "first") for name in JOBS}
    assert set(stated.values()) <= {"first", "every", "one"}
    assert stated["bench"] == stated["profile"] == "first" and stated["train"] == "every"


def test_the_console_script_is_the_same_entry():
    from importlib.metadata import entry_points

    (script,) = [e for e in entry_points(group="console_scripts") if e.name == "flexjax"]
    assert script.load() is launch.run


@pytest.mark.parametrize("path", sorted((home() / "configs").rglob("*.py")), ids=lambda p: p.stem)
def test_every_config_that_ships_is_accepted(path):
    raw = launch.load(str(path))
    mine, others = launch.split(raw)
    job = importlib.import_module(f"flexjax.jobs.{mine['job']}")
    config_lib.complete(launch.Launch, mine)
    config_lib.complete(job.Config, others)


@pytest.mark.parametrize("workdir", ["gs://bucket/runs", "s3://bucket", "file:///runs"])
def test_a_workdir_that_is_a_url_is_refused_and_makes_no_folder(note, tmp_path, capsys, workdir):
    before = sorted(tmp_path.rglob("*"))
    assert launch.run([f"--config={note}", f"--workdir={workdir}"]) == 2
    said = capsys.readouterr().err
    assert f"must be a path of this machine; got {workdir}" in said and "Traceback" not in said
    assert sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts) == before


def test_a_config_that_is_a_url_is_refused(note, capsys):
    assert launch.run(["--config=gs://bucket/a.py"]) == 2
    assert "A config file must be a path of this machine; got gs://bucket/a.py" in capsys.readouterr().err


def test_a_workdir_that_cannot_be_made_is_refused_in_a_line(note, tmp_path, capsys):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        assert launch.run([f"--config={note}", f"--workdir={workdir}"]) == 2
        said = capsys.readouterr().err
        assert "error: The workdir" in said and "cannot be made" in said and "Traceback" not in said
