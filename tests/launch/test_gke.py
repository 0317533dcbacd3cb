"""launch/gke.sh: the manifest it renders, and its calls to a kubectl that only remembers."""

import pytest
import yaml

NAME = "--name=mine"
SLICE = (NAME, "--image=registry/flexjax:1", "--chip=v5e", "--topology=4x4")
ODD = '--config.note=a "b" \\ $HOME: @NAME@ & #'
JOB = ("--", "--config=configs/bench.py", ODD)


def rendered(launch, *options, job=JOB):
    done = launch("gke.sh", "render", *SLICE, *options, *job)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def hosts(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod(manifest):
    return hosts(manifest)["template"]["spec"]


def test_a_slice_becomes_a_pod_a_host_that_all_run_the_same_command(launch):
    manifest = rendered(launch)
    assert manifest["kind"] == "JobSet" and manifest["metadata"]["name"] == "mine"
    assert hosts(manifest)["parallelism"] == hosts(manifest)["completions"] == 4  # 16 chips, 4 a host.
    (container,) = pod(manifest)["containers"]
    assert container["image"] == "registry/flexjax:1"
    assert container["command"] == ["launch/worker.sh"]
    assert container["args"] == [*JOB[1:], "--workdir=runs/mine", "--config.distributed=True"]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
    assert pod(manifest)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }


def test_a_run_ends_and_its_pods_go(launch):
    manifest = rendered(launch, "--deadline-hours=2")
    assert hosts(manifest)["activeDeadlineSeconds"] == 7200
    assert hosts(manifest)["backoffLimit"] == manifest["spec"]["failurePolicy"]["maxRestarts"] == 0
    assert manifest["spec"]["ttlSecondsAfterFinished"] == 3600


def test_one_host_is_not_distributed(launch):
    manifest = rendered(launch, "--topology=2x2")
    assert hosts(manifest)["parallelism"] == 1
    assert "--config.distributed=True" not in pod(manifest)["containers"][0]["args"]


def test_spot_nodes_and_a_bucket_are_asked_for(launch):
    manifest = rendered(launch, "--spot", "--bucket=ours")
    assert pod(manifest)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    (volume,) = pod(manifest)["volumes"]
    assert volume["csi"]["volumeAttributes"] == {"bucketName": "ours"}
    assert hosts(manifest)["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}


def test_results_without_a_bucket_are_warned_of(launch):
    done = launch("gke.sh", "render", *SLICE, *JOB)
    assert "results go with the pods, 60 minutes after the end" in done.stderr


def test_run_applies_what_render_shows_and_says_what_it_costs(launch):
    done = launch("gke.sh", "run", *SLICE, "--namespace=team", *JOB)
    assert done.returncode == 0, done.stderr
    assert launch.calls == [["kubectl", "--namespace=team", "apply", "--filename=-"]]
    assert yaml.safe_load(launch.stdin) == rendered(launch)
    assert "COSTS MONEY: a slice of 16 x v5e costs about $19.20 an hour" in done.stderr
    assert "launch/gke.sh delete --name=mine --namespace=team" in done.stderr


def test_a_refused_manifest_is_a_failure(launch):
    launch.plan(fail=["apply"])
    assert launch("gke.sh", "run", *SLICE, *JOB).returncode == 1


@pytest.mark.parametrize(
    ("verb", "call"),
    [
        (("delete",), ["kubectl", "delete", "jobset", "mine", "--ignore-not-found"]),
        (("status",), ["kubectl", "get", "jobset,pods", "--selector=jobset.sigs.k8s.io/jobset-name=mine"]),
        (("fetch", "--bucket=ours"), ["gcloud", "storage", "cp", "--recursive", "gs://ours/mine", "runs"]),
    ],
    ids=lambda value: value[0],
)
def test_the_other_verbs(launch, verb, call):
    assert launch("gke.sh", *verb, NAME).returncode == 0
    assert launch.calls == [call]
    assert launch("gke.sh", *verb, NAME, "--dry-run").returncode == 0
    assert launch.calls == [call]


def test_logs_follow_the_first_host(launch):
    assert launch("gke.sh", "logs", NAME).returncode == 0
    assert "job-completion-index=0" in launch.calls[0][-1]


def test_a_dry_run_shows_the_manifest_and_applies_nothing(launch):
    done = launch("gke.sh", "run", *SLICE, "--dry-run", *JOB)
    assert done.returncode == 0, done.stderr
    command, manifest = done.stdout.split(" <<MANIFEST\n")
    assert command == "kubectl apply --filename=-"
    assert yaml.safe_load(manifest.removesuffix("MANIFEST\n")) == rendered(launch)
    assert launch.calls == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("run", "--name=Mine"), "--name is lower-case letters"),
        (("run", NAME), "run needs --image"),
        (("run", *SLICE), "run needs the job after --"),
        (("render", *SLICE, "--topology=4", *JOB), "--topology is like 4x4 or 2x2x2; got '4'"),
        (("render", *SLICE, "--topology=3x3", *JOB), "9 chips do not make whole hosts of 4"),
        (("render", *SLICE, "--chip=h100", *JOB), "--chip is v4, v5e, v5p, v6e or 7x; got 'h100'"),
        (("fetch", NAME), "fetch needs --bucket"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_called(launch, args, says):
    done = launch("gke.sh", *args)
    assert done.returncode == 2
    assert says in done.stderr
    assert launch.calls == []
