"""The sweep job: what it runs, what it skips, what it keeps. A stand-in for the launcher writes each point's record."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flexjax import config as config_lib
from flexjax import config_file, records
from flexjax.jobs import sweep
from flexjax.sweep import executors

GOLDEN = Path(__file__).resolve().parents[1] / "models" / "transformer" / "golden" / "llama3"

BASE = '''
"""What every point starts from."""
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(job="profile", model="none", rounds=1))
'''

# Stands in for the launcher: fails where the file `fail` names the point's tokens, else leaves a record.
LAUNCHER = """
import json, pathlib, runpy, sys
config, workdir = runpy.run_path(sys.argv[1])["get_config"](), pathlib.Path(sys.argv[2])
tokens = config["output_tokens"]
with open("ran.txt", "a") as file:
    print(tokens, file=file)
if pathlib.Path("fail").exists() and str(tokens) in pathlib.Path("fail").read_text().split():
    sys.exit(1)
row = {
    "datetime": "2026-01-01T00:00:00+00:00", "benchmark.name": "x", "benchmark.version": "1", "benchmark.valid": True,
    "benchmark.invalid_reasons": "", "benchmark.loadgen_verdict": "VALID", "benchmark.config_json": "{}",
    "software.git_revision": "", "software.xla_flags": "", "submission.scenario": "Offline",
    "metrics.kind": "measured", "metrics.speed": 2.0 * tokens,
}
(workdir / "record.json").write_text(json.dumps([row, {**row, "submission.scenario": "Server", "metrics.speed": 0.0}]))
"""

CONFIG = sweep.Config(
    base="base.py",
    grid=(("output_tokens", (8, 16)), ("engine.dtype", ("float32", "bfloat16"))),
    show=("metrics.speed",),
    where=(("submission.scenario", "Offline"),),
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("base.py").write_text(BASE)
    Path("launcher.py").write_text(LAUNCHER)
    monkeypatch.setattr(
        executors, "_command", lambda config, workdir: [sys.executable, "launcher.py", str(config), str(workdir)]
    )
    return tmp_path


def ran() -> list[int]:
    """Output tokens of the points that have run since the last look."""
    file = Path("ran.txt")
    found = sorted(map(int, file.read_text().split())) if file.exists() else []
    file.unlink(missing_ok=True)
    return found


def test_an_interrupted_sweep_shows_what_has_ended_and_goes_on(folder, capsys, monkeypatch):
    real, kept = sweep._keep, []

    def keep(*args):
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(args)
        real(*args)

    monkeypatch.setattr(sweep, "_keep", keep)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(CONFIG, folder / "w")
    printed = capsys.readouterr().out
    assert "[2/4] " in printed and " left\n" in printed
    assert "Interrupted after 2 of 4 parts; what is done is kept." in printed
    assert printed.count("not run") == 2
    assert len(json.loads((folder / "w" / "record.json").read_text())) == 4  # Two of each point.
    ran()
    monkeypatch.setattr(sweep, "_keep", real)
    assert sweep.run(CONFIG, folder / "w") == 0
    assert len(ran()) == 2


def test_every_point_runs_once_and_its_records_come_together(folder, capsys):
    assert sweep.run(CONFIG, folder / "w") == 0
    assert ran() == [8, 8, 16, 16]
    rows = [r.columns for r in records.read(folder / "w" / "results.parquet")]
    assert len(rows) == 8
    points = {r["technique.sweep_point"]: json.loads(r["technique.sweep_json"]) for r in rows}
    assert {(p["output_tokens"], p["engine.dtype"]) for p in points.values()} == {
        (n, d) for n in (8, 16) for d in ("float32", "bfloat16")
    }
    for key, overrides in points.items():
        note = json.loads((folder / "w" / "points" / key / "point.json").read_text())
        assert note["overrides"] == overrides and note["status"] == 0 and note["records"] == 2
        assert note["config"]["engine"]["dtype"] == overrides["engine.dtype"]
    assert len(json.loads((folder / "w" / "record.json").read_text())) == 8
    said = capsys.readouterr().out
    assert "4 points, 0 of them finished before" in said
    assert "16" in said and "32" in said  # Twice the tokens: the medians of the Offline rows alone.


def test_a_second_run_does_nothing_and_a_wider_one_only_what_is_new(folder, capsys):
    sweep.run(CONFIG, folder / "w")
    ran()
    assert sweep.run(CONFIG, folder / "w") == 0
    assert ran() == []
    wider = dataclasses.replace(CONFIG, grid=(("output_tokens", (8, 16, 32)), CONFIG.grid[1]))
    assert sweep.run(wider, folder / "w") == 0
    assert ran() == [32, 32]
    assert "6 points, 4 of them finished before" in capsys.readouterr().out


def test_what_failed_is_said_and_tried_again(folder, capsys):
    Path("fail").write_text("16")
    assert sweep.run(CONFIG, folder / "w") == 1
    said = capsys.readouterr().out
    assert said.count("INVALID") == 4  # Two points, as they end and in the table.
    assert "log.txt" in said
    assert ran() == [8, 8, 16, 16]
    Path("fail").unlink()
    assert sweep.run(CONFIG, folder / "w") == 0
    assert ran() == [16, 16]
    assert len(records.read(folder / "w" / "results.parquet")) == 8


def test_a_sweep_that_is_cut_off_keeps_the_points_that_had_ended(folder, monkeypatch):
    def cut_off(workdir, point, outcome, keep=sweep._keep):
        keep(workdir, point, outcome)
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(sweep, "_keep", cut_off)
        sweep.run(CONFIG, folder / "w")
    ran()
    assert sweep.run(CONFIG, folder / "w") == 0
    assert len(ran()) == 3
    assert len({r.columns["technique.sweep_point"] for r in records.read(folder / "w" / "results.parquet")}) == 4


def test_a_torn_note_or_record_repeats_its_point(folder):
    sweep.run(CONFIG, folder / "w")
    ran()
    notes = sorted((folder / "w" / "points").glob("*/point.json"))
    notes[0].write_text(notes[0].read_text()[:20])
    assert sweep.run(CONFIG, folder / "w") == 0
    assert len(ran()) == 1

    notes[0].unlink()
    Path("launcher.py").write_text(LAUNCHER + '(workdir / "record.json").write_text("[{")')
    assert sweep.run(CONFIG, folder / "w") == 1
    assert json.loads(notes[0].read_text())["status"] == 1
    Path("launcher.py").write_text(LAUNCHER)
    assert sweep.run(CONFIG, folder / "w") == 0
    assert len(ran()) == 2


def test_points_that_resolve_to_the_same_run_once(folder):
    same = dataclasses.replace(CONFIG, grid=(("output_tokens", (8, 8)), ("rounds", (1,))))
    assert sweep.run(same, folder / "w") == 0
    assert ran() == [8]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(grid=(("engine.dtyp", ("float32",)),)), "config.engine has no field 'dtyp'"),
        (dict(grid=(("engine.dtype", ("float8",)),)), "float8"),
        (dict(grid=(("job", ("sweep",)),)), "A sweep of sweeps"),
        (dict(grid=(("job", ("dance",)),)), "jobs of flexjax.jobs; base.py gives job='dance'"),
        (dict(base="configs/none.py"), "no such file"),
    ],
)
def test_a_sweep_with_a_wrong_point_starts_none(folder, change, says):
    with pytest.raises(ValueError, match=says):
        sweep.run(dataclasses.replace(CONFIG, **change), folder / "w")
    assert ran() == []


def test_the_config_that_ships_resolves():
    _, fields = config_file.split(config_file.load("configs/sweep.py"))
    config = config_lib.from_config_dict(sweep.Config, fields)
    assert len(sweep._points(config)) == 4


@pytest.mark.parametrize("kind", ["processes", "ray"])
def test_one_command_sweeps_with_the_real_launcher(tmp_path, kind):
    """Ray starts on this machine, runs both points as its tasks, and ends with the sweep."""
    if kind == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed (extra 'search')")
    # The package amdsmi, which zeus brings, breaks Ray's import where AMD's library is absent; here it is hidden.
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "amdsmi.py").write_text("raise ImportError")
    (tmp_path / "base.py").write_text(
        '"""A tiny model."""\nfrom ml_collections import ConfigDict\n\ndef get_config():\n'
        f"    engine = dict(dtype='float32', max_num_seqs=2, max_num_batched_tokens=32, max_model_len=48)\n"
        f"    return ConfigDict(dict(job='profile', model={str(GOLDEN)!r}, engine=engine, prompt_tokens=8, "
        "output_tokens=16, rounds=1))\n"
    )
    (tmp_path / "sweep.py").write_text(
        '"""Two points."""\nfrom ml_collections import ConfigDict\n\ndef get_config():\n'
        f"    grid = (('engine.decode_steps', (1, 2)),)\n"
        f"    executor = dict(kind={kind!r}, keep=('*.csv', 'log.txt'))\n"
        f"    return ConfigDict(dict(job='sweep', base={str(tmp_path / 'base.py')!r}, grid=grid, executor=executor))\n"
    )
    command = [
        sys.executable,
        "-m",
        "flexjax.launch",
        f"--config={tmp_path / 'sweep.py'}",
        f"--workdir={tmp_path / 'w'}",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tmp_path / "hidden")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folders = list((tmp_path / "w" / "points").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert json.loads((folder / "point.json").read_text())["status"] == 0
        assert (folder / "profile.csv").read_text().count("\n") == 2
        assert "flexjax profile: " in (folder / "log.txt").read_text()
