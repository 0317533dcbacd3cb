"""Two processes on this machine, four devices each, serve one model split over all eight."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from devices import REPOSITORY, environment

FOLDER = Path(__file__).parents[1] / "models" / "transformer" / "golden" / "llama3"


@pytest.fixture(scope="module")
def golden():
    return np.load(FOLDER / "golden.npz")


@pytest.fixture(scope="module")
def made(golden) -> list[dict]:
    """What each process printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    prompts = json.dumps([golden[f"prompt_{i}"].tolist() for i in range(3)])
    script = Path(__file__).with_name("generate_in_two_processes.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(FOLDER), prompts],
            cwd=REPOSITORY,
            env=environment(4)
            | {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        texts = [process.communicate(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, texts, strict=True):
        assert process.returncode == 0, errors[-4000:]
    return [json.loads(text.splitlines()[-1]) for text, _ in texts]


@pytest.mark.slow
def test_both_make_the_published_continuation(made, golden):
    for one in made:
        assert one["devices"] == [4, 8]
        assert one["greedy"] == [golden[f"greedy_{i}"].tolist() for i in range(3)]
        np.testing.assert_allclose(one["logits"], golden["logits_0"][-1], atol=2e-4, rtol=0)


@pytest.mark.slow
def test_both_draw_the_same(made):
    first, second = made
    assert first["drawn"] == second["drawn"]
    assert first["drawn"][0] != first["drawn"][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        ("other prompts", "ValueError: An engine over several processes is given the same prompts"),
        ("thread", "NotImplementedError: An engine over several processes makes the same steps in each"),
        ("replicas", "NotImplementedError: Replicas live in one process"),
    ],
)
def test_what_two_processes_cannot_do_is_refused_in_both(made, attempt, message):
    assert [one[attempt].startswith(message) for one in made] == [True, True], [one[attempt] for one in made]
