import getpass
import re
import socket
import subprocess

import jax

from flexjax.records import Record, environment
from flexjax.records.schema import REQUIRED


def test_the_columns_make_a_record_and_know_this_machine():
    columns = environment.collect()
    Record.of(dict.fromkeys(REQUIRED, "x") | columns)
    assert columns["software.framework.jax"] == jax.__version__
    assert columns["system.platform"] == jax.default_backend()
    assert columns["system.cpu.cores_used"] <= columns["system.cpu.core_count"]
    assert columns["system.memory.capacity_gib"] > 0


def test_nothing_names_a_person_or_a_place():
    text = " ".join(str(value) for value in environment.collect().values())
    words = re.split(r"[\s/]+", text)
    assert socket.gethostname() not in words and getpass.getuser() not in words
    assert "/home" not in text and str(environment._SOURCE) not in text


def test_xla_flags_are_recorded(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_b=2")
    assert environment.software()["software.xla_flags"] == "--xla_b=2 --xla_a=1"


def test_the_revision_is_that_of_the_tree_and_tells_of_changes(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert environment.git_revision(tmp_path) == ("unknown", "installed as a package, not run from a git checkout")
    git("init", "-q")
    revision, note = environment.git_revision(tmp_path)
    assert revision == "unknown" and note.startswith("git failed")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "a")
    commit = git("rev-parse", "HEAD")
    assert environment.git_revision(tmp_path) == (commit, "")
    (tmp_path / "a").write_text("2")
    assert environment.git_revision(tmp_path) == (f"{commit}+changes", "")
