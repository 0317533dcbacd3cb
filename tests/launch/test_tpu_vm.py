"""launch/tpu_vm.sh against a gcloud that only remembers."""

import shlex

import pytest

WHERE = ("--name=mine", "--zone=us-west4-a")
TPU = ["gcloud", "compute", "tpus"]
CREATE = [*TPU, "tpu-vm", "create", "mine", "--accelerator-type=v5litepod-8"]
DELETE = [*TPU, "tpu-vm", "delete", "mine", "--quiet", "--zone=us-west4-a"]
JOB = ("--", "--config=configs/bench.py", "--config.note=two words; $HOME")


def create(launch, *options):
    return launch("tpu_vm.sh", "create", *WHERE, "--type=v5litepod-8", *options)


def test_create_makes_one_and_says_what_it_costs_and_how_to_end_it(launch):
    done = create(launch, "--spot", "--project=ours")
    assert done.returncode == 0, done.stderr
    (call,) = launch.changes
    assert call[:2] == ["gcloud", "--project=ours"]
    assert call[2:] == [*CREATE[1:], "--spot", "--version=v2-alpha-tpuv5-lite", "--zone=us-west4-a"]
    assert "COSTS MONEY: mine (v5litepod-8) costs about $9.60 an hour at list price" in done.stderr
    assert "launch/tpu_vm.sh delete --name=mine --zone=us-west4-a --project=ours" in done.stderr


def test_create_again_leaves_it_alone(launch):
    create(launch)
    again = create(launch)
    assert again.returncode == 0 and "exists already" in again.stderr
    assert len(launch.changes) == 1
    assert "COSTS MONEY" in again.stderr


def test_a_queued_resource_is_waited_for(launch):
    launch.plan(states=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    done = create(launch, "--queued")
    assert done.returncode == 0, done.stderr
    assert [c[3:7] for c in launch.changes] == [["queued-resources", "create", "mine", "--node-id=mine"]]
    assert "mine is PROVISIONING" in done.stderr
    assert launch("tpu_vm.sh", "delete", *WHERE).returncode == 0
    assert launch.changes[1][3:] == ["queued-resources", "delete", "mine", "--force", "--quiet", WHERE[1]]


def test_a_refused_request_is_an_error_that_tells_how_to_end_it(launch):
    launch.plan(states=["FAILED"])
    done = create(launch, "--queued")
    assert done.returncode == 1
    assert "the request for mine is FAILED" in done.stderr
    assert "launch/tpu_vm.sh delete --name=mine" in done.stderr


def test_run_sends_the_code_to_every_host_and_starts_the_same_command_on_each(launch):
    create(launch)
    done = launch("tpu_vm.sh", "run", *WHERE, *JOB)
    assert done.returncode == 0, done.stderr
    copy, unpack, job = [c[3:] for c in launch.changes[1:]]
    assert copy[:2] == ["tpu-vm", "scp"] and copy[3:] == ["mine:flexjax.tar.gz", "--worker=all", WHERE[1]]
    assert unpack[:4] == job[:4] == ["tpu-vm", "ssh", "mine", "--worker=all"]
    assert "tar -xzf flexjax.tar.gz" in unpack[4]
    folder, command = job[4].removeprefix("--command=").split(" && ", 1)
    assert folder == "cd flexjax"
    assert shlex.split(command) == [
        *["EXTRA=tpu", "launch/worker.sh", *JOB[1:], "--workdir=runs/mine", "--config.distributed=True"]
    ]
    assert "COSTS MONEY" in done.stderr
    assert "launch/tpu_vm.sh fetch --name=mine" in done.stderr


def test_run_needs_a_tpu(launch):
    done = launch("tpu_vm.sh", "run", *WHERE, *JOB)
    assert done.returncode == 2
    assert "there is no TPU called mine in us-west4-a; create it first" in done.stderr
    assert launch.changes == []


def test_a_failed_run_leaves_the_tpu_and_says_that_it_costs(launch):
    create(launch)
    launch.plan(fail=["worker.sh"])
    done = launch("tpu_vm.sh", "run", *WHERE, *JOB)
    assert done.returncode == 1
    assert DELETE not in launch.calls
    assert done.stderr.rstrip().endswith("launch/tpu_vm.sh delete --name=mine --zone=us-west4-a")


def test_a_failed_run_deletes_when_asked(launch):
    create(launch)
    launch.plan(fail=["worker.sh"])
    done = launch("tpu_vm.sh", "run", *WHERE, "--delete-on-failure", *JOB)
    assert done.returncode == 1
    assert launch.changes[-1] == DELETE
    assert "Nothing called mine is left in us-west4-a: nothing to pay." in done.stderr


def test_fetch_brings_the_results_of_the_first_host(launch, tmp_path):
    create(launch)
    done = launch("tpu_vm.sh", "fetch", *WHERE, f"--to={tmp_path / 'here'}")
    assert done.returncode == 0, done.stderr
    assert launch.changes[-1][3:] == [
        *["tpu-vm", "scp", "--recurse", "mine:flexjax/runs/mine", str(tmp_path / "here"), "--worker=0", WHERE[1]]
    ]
    assert (tmp_path / "here").is_dir()
    assert "COSTS MONEY" in done.stderr


def test_delete_ends_what_is_there_and_is_content_with_nothing(launch):
    create(launch)
    first, second = (launch("tpu_vm.sh", "delete", *WHERE) for _ in range(2))
    assert first.returncode == second.returncode == 0
    assert launch.changes[1:] == [DELETE]
    assert "nothing to pay" in first.stderr and "nothing to pay" in second.stderr


def test_a_tpu_that_outlives_its_deletion_is_an_error(launch):
    create(launch)
    launch.plan(delete=["refused"])
    done = launch("tpu_vm.sh", "delete", *WHERE)
    assert done.returncode == 1
    assert "mine is still there (ACTIVE) and may still cost money" in done.stderr


@pytest.mark.parametrize("verb", ["create", "delete", "status"])
def test_not_knowing_is_not_taken_for_nothing_to_pay(launch, verb):
    """A lost login makes every list fail."""
    create(launch)
    launch.plan(fail=["list"])
    done = launch("tpu_vm.sh", verb, *WHERE, "--type=v5litepod-8")
    assert done.returncode == 1
    assert "gcloud did not say whether mine exists; it may, and cost money" in done.stderr
    assert "nothing to pay" not in done.stderr
    assert len(launch.changes) == 1


@pytest.mark.parametrize(
    ("verb", "commands"),
    [
        (("create", "--type=v6e-8", "--queued", "--spot"), ["queued-resources create"]),
        (("run", *JOB), ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]),
        (("fetch",), ["tpu-vm scp"]),
        (("status",), ["tpu-vm list", "queued-resources list"]),
        (("delete",), ["queued-resources delete", "tpu-vm delete"]),
    ],
    ids=lambda value: value[0],
)
def test_a_dry_run_prints_each_command_and_makes_none(launch, verb, commands):
    done = launch("tpu_vm.sh", verb[0], *WHERE, "--dry-run", *verb[1:])
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [" ".join(line[3:5]) for line in lines] == commands
    assert all(line[:3] == TPU and line[-1] == WHERE[1] for line in lines)
    assert launch.calls == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("make",), "verbs are create, run, fetch, status and delete; got make"),
        (("create", "--zone=z"), "create needs --name"),
        (("create", "--name=a"), "create needs --zone"),
        (("create", "--name=a", "--zone=z"), "create needs --type"),
        (("create", "--name=a", "--zone=z", "--type=v9-8"), "no runtime is known for v9-8: give --version"),
        (("run", "--name=a", "--zone=z"), "run needs the job after --"),
        (("run", "--name=a", "--zone=z", "--config=x"), "unknown argument --config=x"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_called(launch, args, says):
    done = launch("tpu_vm.sh", *args)
    assert done.returncode == 2
    assert says in done.stderr
    assert launch.calls == []
