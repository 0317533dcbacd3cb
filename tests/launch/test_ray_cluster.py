"""launch/ray_cluster.sh against an ssh that only remembers."""

import shlex

import pytest

HOSTS = "--hosts=a,b"


def on(launch, host):
    return [c[-1].removeprefix("cd flexjax && ") for c in launch.calls if c[0] == "ssh" and c[-2] == host]


def test_start_sets_up_the_hosts_and_joins_them_to_the_first(launch):
    done = launch("ray_cluster.sh", "start", HOSTS, "--extra=cuda", "--address=10.0.0.1")
    assert done.returncode == 0, done.stderr
    for host in "ab":
        assert [c for c in on(launch, host) if "worker.sh" in c] == [
            "EXTRA=search launch/worker.sh --help >/dev/null",
            "EXTRA=cuda launch/worker.sh --help >/dev/null",
        ]
    (head,) = [c for c in on(launch, "a") if "ray start" in c]
    (worker,) = [c for c in on(launch, "b") if "ray start" in c]
    assert "--head --port=6379" in head
    assert "--address=10.0.0.1:6379" in worker and "--head" not in worker
    # A host that has joined is left alone.
    assert all(c.startswith("pgrep -x raylet >/dev/null || ") for c in (head, worker))
    assert "launch/ray_cluster.sh stop" in done.stderr


def test_the_token_goes_from_host_to_host_unseen(launch):
    done = launch("ray_cluster.sh", "start", HOSTS)
    assert launch.stdin == "a-secret\n"
    assert "a-secret" not in done.stdout + done.stderr + str(launch.calls)
    (written,) = [c for c in on(launch, "b") if "auth_token" in c]
    assert written.startswith("umask 077 && ")
    assert not any("auth_token" in c for c in on(launch, "a"))


def test_run_starts_the_sweep_on_the_first_host(launch):
    done = launch("ray_cluster.sh", "run", HOSTS, "--name=wide", "--", "--config=configs/sweep.py", "--config.x=a b")
    assert done.returncode == 0, done.stderr
    (call,) = launch.calls
    assert call[-2] == "a"
    assert shlex.split(call[-1]) == [
        *["cd", "flexjax", "&&", ".venv/bin/python", "-m", "flexjax.launch", "--config=configs/sweep.py"],
        *["--config.x=a b", "--config.executor.kind=ray", "--config.executor.ray_address=auto"],
        "--workdir=runs/wide",
    ]
    assert "RUNNING: Ray holds 2 host(s)" in done.stderr


def test_a_failed_run_still_says_what_runs(launch):
    launch.plan(fail=["flexjax.launch"])
    done = launch("ray_cluster.sh", "run", HOSTS, "--", "--config=configs/sweep.py")
    assert done.returncode == 1
    assert "RUNNING: Ray holds 2 host(s)" in done.stderr


def test_stop_ends_every_host_even_past_one_that_fails(launch):
    launch.plan(fail=["BatchMode=yes a "])
    done = launch("ray_cluster.sh", "stop", HOSTS)
    assert done.returncode == 2
    assert "Ray may still run on a" in done.stderr
    assert on(launch, "b") == [".venv/bin/ray stop"]


@pytest.mark.parametrize("verb", [("start",), ("run", "--", "--config=x"), ("status",), ("stop",), ("fetch",)])
def test_a_dry_run_prints_each_command_and_makes_none(launch, verb):
    done = launch("ray_cluster.sh", verb[0], HOSTS, "--dry-run", *verb[1:])
    assert done.returncode == 0, done.stderr
    assert all(shlex.split(line)[0] in ("ssh", "scp") for line in done.stdout.splitlines()) and done.stdout
    assert launch.calls == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("start",), "start needs --hosts"),
        (("run", HOSTS), "run needs the job after --"),
        (("start", "--hosts=localhost,b"), "cannot find this machine as localhost: give --address"),
        (("fetch", "--hosts=localhost"), "the results lie in runs/sweep of this checkout"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_called(launch, args, says):
    done = launch("ray_cluster.sh", *args)
    assert done.returncode == 2
    assert says in done.stderr
    assert launch.calls == []
