"""launch/nvidia_hosts.sh against an ssh that only remembers."""

import os
import shlex
import time

import pytest

JOB = ("--", "--config=configs/bench.py", "--config.note=two words")


def places(calls):
    """The environment that each host's command gives the job, and the command after it."""
    commands = [shlex.split(c[-1].removeprefix("cd flexjax && ")) for c in calls if "worker.sh" in c[-1]]
    return [(dict(word.split("=", 1) for word in c[1:5]), c[5:]) for c in commands]


def test_one_process_a_host_each_told_its_place(launch):
    done = launch("nvidia_hosts.sh", "run", "--hosts=a,b,c", "--address=10.0.0.1", *JOB)
    assert done.returncode == 0, done.stderr
    found = places(sorted(launch.calls, key=str))
    assert sorted(place["JAX_PROCESS_ID"] for place, _ in found) == ["0", "1", "2"]
    for place, command in found:
        assert place["EXTRA"] == "cuda"
        assert place["JAX_COORDINATOR_ADDRESS"] == "10.0.0.1:12355" and place["JAX_NUM_PROCESSES"] == "3"
        assert command == ["launch/worker.sh", *JOB[1:], "--workdir=runs/nvidia", "--config.distributed=True"]
    assert "The hosts themselves stay up" in done.stderr


def test_every_host_has_the_code_before_any_starts(launch):
    launch("nvidia_hosts.sh", "run", "--hosts=a,b", *JOB)
    assert [c[0] for c in launch.calls[:4]] == ["scp", "ssh", "scp", "ssh"]
    assert [c[-1] for c in launch.calls if c[0] == "scp"] == ["a:flexjax.tar.gz", "b:flexjax.tar.gz"]
    assert {c[-2] for c in launch.calls[4:]} == {"a", "b"}


def test_one_host_that_fails_ends_the_others(launch):
    launch.plan(fail=["JAX_PROCESS_ID=1"], hang=["JAX_PROCESS_ID=0"])
    began = time.monotonic()
    done = launch("nvidia_hosts.sh", "run", "--hosts=a,b", *JOB)
    assert done.returncode == 1
    assert time.monotonic() - began < 25  # The other would have taken 60 s.
    assert "The run has ended on all hosts (exit status 1)" in done.stderr
    pid_file = launch.folder / "hanging.pid"
    if pid_file.exists():  # It may have been ended before it hung.
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid_file.read_text()), 0)


def test_a_host_that_cannot_be_reached_ends_it_before_any_starts(launch):
    launch.plan(fail=["b:flexjax"])
    assert launch("nvidia_hosts.sh", "run", "--hosts=a,b", *JOB).returncode == 1
    assert places(launch.calls) == []


def test_fetch_brings_the_results_of_the_first_host(launch, tmp_path):
    assert launch("nvidia_hosts.sh", "fetch", "--hosts=a,b", "--name=x", f"--to={tmp_path / 'r'}").returncode == 0
    assert launch.calls == [["scp", "-o", "BatchMode=yes", "-q", "-r", "a:flexjax/runs/x", str(tmp_path / "r")]]


def test_a_dry_run_prints_each_command_and_makes_none(launch):
    done = launch("nvidia_hosts.sh", "run", "--hosts=a,b", "--dry-run", *JOB)
    assert done.returncode == 0, done.stderr
    assert launch.calls == []
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["scp", "ssh", "scp", "ssh", "ssh", "ssh"]
    assert [place["JAX_PROCESS_ID"] for place, _ in places(lines)] == ["0", "1"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("run", *JOB), "run needs --hosts=A,B"),
        (("run", "--hosts=a"), "run needs the job after --"),
        (("stop",), "verbs are run and fetch; got stop"),
        (("run", "--host=a"), "unknown argument --host=a"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_called(launch, args, says):
    done = launch("nvidia_hosts.sh", *args)
    assert done.returncode == 2
    assert says in done.stderr
    assert launch.calls == []
