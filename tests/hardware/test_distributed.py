"""Which process this is: from the environment, or from the cluster."""

import os
import signal
import socket
import subprocess
import sys

import jax
import pytest

from flexjax.hardware import distributed

PLACE = dict(JAX_COORDINATOR_ADDRESS="host:1234", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1")


@pytest.fixture
def joined(monkeypatch) -> list[tuple]:
    """What `jax.distributed.initialize` is called with, which does not run."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: calls.append(args))
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)
    return calls


def test_the_environment_says_which_process_this_is(joined, monkeypatch):
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    distributed.join()
    assert joined == [("host:1234", 2, 1)]


def test_else_the_cluster_does(joined):
    distributed.join()
    assert joined == [()]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(JAX_PROCESS_ID="2"), "JAX_PROCESS_ID counts from 0 to JAX_NUM_PROCESSES - 1; got 2 of 2"),
        (dict(JAX_PROCESS_ID="-1"), "JAX_PROCESS_ID is a whole number; got '-1'"),
        (dict(JAX_NUM_PROCESSES="two"), "JAX_NUM_PROCESSES is a whole number; got 'two'"),
        (dict(JAX_COORDINATOR_ADDRESS="host"), "JAX_COORDINATOR_ADDRESS=host:port"),
        (dict(JAX_PROCESS_ID=""), "say together which process"),
    ],
)
def test_a_half_said_place_is_refused(joined, monkeypatch, change, says):
    for name, value in (PLACE | change).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=says):
        distributed.join()
    assert joined == []


def test_no_cluster_and_no_environment_is_refused(monkeypatch):
    def initialize(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="Set JAX_COORDINATOR_ADDRESS=host:port"):
        distributed.join()


@pytest.mark.parametrize(("inside", "status"), [(True, 5), (False, -signal.SIGABRT)])
def test_who_aborts_a_process_is_told_first(inside, status):
    """In a thread, while the main one never comes back to Python's own handlers."""
    program = (
        "import os, threading, time; from flexjax.hardware import distributed\n"
        "with distributed.on_abort(lambda: (print('told', flush=True), os._exit(5))):\n"
        f"    if {inside}:\n"
        "        threading.Thread(target=os.abort).start(); time.sleep(60)\n"
        "os.abort()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (status, "told\n" if inside else "")


@pytest.mark.slow
def test_a_process_that_never_comes_is_said(tmp_path):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    program = "from flexjax.hardware import distributed; distributed.WAIT_S = 3; distributed.join()"
    place = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="0")
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **place}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == distributed.LOST
    assert f"error: this process waited 3 s for the others at {address}, and not all of them came." in done.stderr


def test_two_launched_processes_see_each_others_devices(tmp_path):
    """Both run the same command, as on every host of a slice; only the environment differs."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    program = (
        "from flexjax.hardware import distributed; distributed.join(); import jax;"
        "print(jax.process_index(), jax.process_count(), jax.device_count(), jax.local_device_count())"
    )
    base = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**base, "JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert said == ["0 2 2 1", "1 2 2 1"]
