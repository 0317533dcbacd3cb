"""launch/worker.sh on a host where make and the environment's Python only remember."""

import shutil

import pytest


@pytest.fixture
def host(launch):
    """The launch fixture with a fake make, and a fake .venv/bin/python in the checkout."""
    fake = launch.folder / "bin" / "gcloud"
    shutil.copy(fake, launch.folder / "bin" / "make")
    (launch.checkout / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(fake, launch.checkout / ".venv" / "bin" / "python")
    for name in ("constraints.txt", "pyproject.toml"):
        (launch.checkout / name).touch()
    return launch


def test_it_sets_up_and_ends_in_the_launcher(host):
    done = host("worker.sh", "--config=configs/bench.py", "--config.note=two words")
    assert done.returncode == 0, done.stderr
    assert host.calls == [
        ["make", "--no-print-directory", "setup"],
        ["python", "-m", "flexjax.launch", "--config=configs/bench.py", "--config.note=two words"],
    ]


def test_what_the_chip_needs_is_installed_once(host):
    for _ in range(2):
        assert host("worker.sh", "--help", EXTRA="tpu").returncode == 0
    installs = [c for c in host.calls if "install" in c]
    assert [c[-2:] for c in installs] == [["--editable", ".[tpu]"]]
    assert "--constraint" in installs[0]


def test_a_failed_setup_starts_no_job(host):
    host.plan(fail=["setup"])
    assert host("worker.sh", "--help").returncode == 1
    assert [c[0] for c in host.calls] == ["make"]


def test_the_status_is_the_jobs_own(host):
    host.plan(fail=["flexjax.launch"])
    assert host("worker.sh", "--help").returncode == 1
