"""One job in several processes: they end with the exit status of process 0, and with the name of one that is lost."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import jax.numpy as jnp
import pytest
from devices import REPOSITORY, environment

from flexjax import processes
from flexjax.data.tokenizer import save_tokenizer, train_tokenizer
from flexjax.engine.processes import crew
from flexjax.hardware import distributed
from models.transformer import Layer, Rope, TransformerConfig, build, save


class Boxes:
    """A `Post`; those of two processes share the boxes."""

    def __init__(self, index: int, shared: dict | None = None):
        self.index, self.count = index, 2
        self.shared = defaultdict(queue.SimpleQueue) if shared is None else shared
        self.ended, self.lost = threading.Event(), ""

    def name(self, number):
        return f"process {number} of 2 (host-{number})"

    def send(self, to, box, letter):
        self.shared[to, box].put(letter)

    def take(self, box, timeout=None):
        return self.shared[self.index, box].get(timeout=timeout)

    def close(self):
        self.ended.set()


class Job:
    """What process 0 and process 1 do, each in a thread, and how they end."""

    def __init__(self, monkeypatch, tmp_path):
        self.ends: dict[int, tuple[str, int]] = {}
        self.said: list[str] = []
        self._ended = [threading.Event(), threading.Event()]
        self._workdir = tmp_path
        first = Boxes(0)
        self.posts = (first, Boxes(1, first.shared))
        self._who = threading.local()
        monkeypatch.setattr(processes, "GRACE_S", 0.2)
        monkeypatch.setattr(processes, "_leave", self._leave)
        monkeypatch.setattr(processes, "_say", self.said.append)
        monkeypatch.setattr(crew, "_order", None)

    def run(self, *works, everywhere: bool = True) -> list[tuple[str, int]]:
        for index, work in enumerate(works):
            threading.Thread(target=self._member, args=(index, work, everywhere), daemon=True).start()
        for ended in self._ended:
            assert ended.wait(30), self.said
        return [self.ends[index] for index in range(2)]

    def _member(self, index, work, everywhere):
        tell = lambda error: self.said.append(f"{index}: {error}") or 7
        made = (processes._Leader, processes._Other)[index](self.posts[index], tell)
        self._end(index, "returned", made.run(work, self._workdir, everywhere))

    def _leave(self, status):
        frame = sys._getframe(1)
        self._end(frame.f_locals["self"].post.index, "left", status)
        hang(None)  # A process would end here; nothing that comes after may run.

    def _end(self, index, how, status):
        self.ends.setdefault(index, (how, status))
        self._ended[index].set()


@pytest.fixture
def job(monkeypatch, tmp_path) -> Job:
    return Job(monkeypatch, tmp_path)


def hang(_):
    threading.Event().wait()


def fail(_):
    raise RuntimeError("the disk is full")


def test_the_status_of_process_0_is_that_of_all(job):
    seen = []
    assert job.run(lambda where: 1, lambda where: seen.append(where) or 0) == [("returned", 1), ("returned", 1)]
    assert seen == [job._workdir] and job.said == []


def test_process_0_alone_runs_a_job_that_serves(job, capsys):
    assert job.run(lambda where: 0, fail, everywhere=False) == [("returned", 0), ("returned", 0)]
    assert capsys.readouterr().out == "process 1 of 2 follows\n"


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_failure_in_process_0_ends_the_other_even_where_that_hangs(job, everywhere):
    assert job.run(fail, hang, everywhere=everywhere) == [("left", 7), ("left", 7)]
    assert job.said == ["0: the disk is full"]


def test_a_failure_elsewhere_ends_process_0_with_its_name(job):
    assert job.run(hang, fail) == [("left", 7), ("left", 7)]
    assert job.said == [
        "1: the disk is full",
        "error: process 1 of 2 (host-1) failed: RuntimeError: the disk is full",
    ]


def test_where_both_fail_each_says_it_once(job):
    assert job.run(fail, fail) == [("left", 7), ("left", 7)]
    assert sorted(job.said) == ["0: the disk is full", "1: the disk is full"]


@pytest.mark.parametrize("survivor", [0, 1])
def test_a_lost_process_is_named(job, survivor):
    def lose(_):
        post = job.posts[survivor]
        post.lost = f"{post.name(1 - survivor)} is gone"
        post.ended.set()
        hang(_)

    for index in range(2):
        job._ended[index].set() if index != survivor else None
    job.ends[1 - survivor] = ("left", 9)
    works = (lose, lambda _: 0) if survivor == 0 else (hang, lose)
    assert job.run(*works)[survivor] == ("left", distributed.LOST)
    gone, here = 1 - survivor, survivor
    name = lambda i: f"process {i} of 2 (host-{i})"
    assert job.said == [f"error: {name(gone)} is gone, and {name(here)} ends with it."]


# What follows starts processes.

FAKE = '''
"""Does what it is told."""
import dataclasses, os, time
import jax
from flexjax.refusal import Refusal

@dataclasses.dataclass(frozen=True)
class Config:
    does: str = "wait"

def run(config, workdir):
    (workdir / "began").touch()
    if config.does == "refuse":
        raise Refusal("does must be something else.")
    time.sleep(300)
'''

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(
        job="bench", model={model!r}, rounds=1, calibration_queries=8,
        sides=dict(stock=dict(kind="stock", batch_size=2), optimised=dict(kind="engine")), memory=False,
        engine=dict(dtype="float32", max_num_seqs=2, max_num_batched_tokens=16, page_size=8),
        workload=dict(
            prompts=32,
            input=dict(median=8.0, sigma=0.3, low=4, high=16),
            output=dict(median=4.0, sigma=0.3, low=2, high=8),
        ),
        scenarios=("Offline",),
        offline=dict(queries=12, min_duration_s=0.0),
        quality=dict(text_bytes=300, context_tokens=16, continuation_tokens=8, prompts=2, alone=2),
    ))
"""


class Started:
    """Two processes of one command, which differ in their environment and have a workdir each."""

    def __init__(self, folder: Path, jobs: Path, *args: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        script = Path(__file__).with_name("launch_with_jobs.py")
        self.workdirs = [folder / "0", folder / "1"]
        self.logs = [folder / "0.txt", folder / "1.txt"]
        self.processes = []
        for index, (workdir, log) in enumerate(zip(self.workdirs, self.logs, strict=True)):
            place = {distributed.ADDRESS: address, distributed.COUNT: "2", distributed.INDEX: str(index)}
            command = [sys.executable, "-u", str(script), str(jobs), *args, "--config.distributed=True"]
            with log.open("w") as out:
                self.processes.append(
                    subprocess.Popen(
                        [*command, f"--workdir={workdir}"],
                        cwd=REPOSITORY,
                        env=environment(1) | place | {"JAX_COMPILATION_CACHE_DIR": str(jobs / "compiled")},
                        stdout=out,
                        stderr=subprocess.STDOUT,
                    )
                )

    def until(self, there) -> None:
        ends = time.monotonic() + 300
        while not there():
            assert time.monotonic() < ends and None in [p.poll() for p in self.processes], self.printed
            time.sleep(0.05)

    def kill(self, index: int, with_signal: int = signal.SIGKILL) -> None:
        os.kill(self.processes[index].pid, with_signal)

    def statuses(self, timeout: float = 300) -> list[int]:
        try:
            return [process.wait(timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    @property
    def printed(self) -> list[str]:
        return [log.read_text() for log in self.logs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The fake job, the config of a small benchmark, its model, and what XLA compiled for it."""
    folder = tmp_path_factory.mktemp("jobs")
    config = TransformerConfig(
        architecture="LlamaForCausalLM",
        vocab_size=258,
        d_model=16,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        d_ff=32,
        max_position=32,
        layers=(Layer(rope=Rope()),),
        eos_token_id=0,
    )
    save(build(config, dtype=jnp.float32), folder / "model")
    save_tokenizer(train_tokenizer(["x"], vocab_size=257), folder / "model", max_position=32)
    (folder / "small.py").write_text(CONFIG.format(model=str(folder / "model")))
    (folder / "fake.py").write_text(FAKE)
    fake = 'from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict(dict(job="fake"))\n'
    (folder / "fake_config.py").write_text(fake)
    return folder


@pytest.fixture
def fake(folder, tmp_path):
    return lambda *args: Started(tmp_path, folder, f"--config={folder / 'fake_config.py'}", *args)


@pytest.fixture
def bench(folder, tmp_path):
    return lambda *args: Started(tmp_path, folder, f"--config={folder / 'small.py'}", *args)


def lines(text: str) -> list[str]:
    """Without what Gloo says of its connections."""
    return [line for line in text.splitlines() if line and not line.startswith("[Gloo]")]


@pytest.mark.slow
def test_a_model_split_over_two_processes_is_measured(bench):
    job = bench("--config.engine.mesh.tensor=2")
    assert job.statuses() == [0, 0], job.printed
    rows = json.loads((job.workdirs[0] / "record.json").read_text())[-2:]  # Before them stands the calibration.
    assert [(row["technique.name"], row["benchmark.valid"]) for row in rows] == [("stock", True), ("optimised", True)]
    assert rows[1]["quality.rouge_l"] == 100 and rows[1]["system.number_of_nodes"] == 2
    assert not job.workdirs[1].exists()
    assert lines(job.printed[1]) == ["process 1 of 2 follows"]


@pytest.mark.slow
def test_a_replica_in_each_process_is_measured_and_an_invalid_result_is_told_by_both(bench):
    job = bench(
        "--config.engine.mesh.data=2",
        "--config.scenarios=SingleStream",
        "--config.single_stream.queries=16",
        "--config.single_stream.min_duration_s=0.0",
    )
    assert job.statuses() == [1, 1], job.printed
    assert "optimised, SingleStream, round 1: LoadGen: too few queries for p90" in " ".join(job.printed[0].split())
    (stock, ours) = json.loads((job.workdirs[0] / "record.json").read_text())[-2:]
    assert (stock["metrics.completed"], ours["metrics.completed"]) == (16, 16)
    assert ours["metrics.load_s"] >= 0
    assert lines(job.printed[1]) == ["process 1 of 2 follows"]


@pytest.mark.slow
def test_a_process_that_is_killed_in_a_run_ends_the_other_with_its_name(bench):
    job = bench("--config.engine.mesh.tensor=2", "--config.offline.queries=100000")
    job.until(lambda: (job.workdirs[0] / "loadgen").exists())
    job.kill(1)
    began = time.monotonic()
    assert job.statuses() == [distributed.LOST, -signal.SIGKILL], job.printed
    assert time.monotonic() - began < 60
    assert f"error: process 1 of 2 ({socket.gethostname()}) is gone, and process 0 of 2" in job.printed[0]


@pytest.mark.slow
def test_where_process_0_is_killed_the_other_names_it(fake):
    job = fake()
    job.until(lambda: (job.workdirs[0] / "began").exists() and "follows" in job.printed[1])
    job.kill(0)
    assert job.statuses() == [-signal.SIGKILL, distributed.LOST], job.printed
    assert "error: process 0 of 2 (127.0.0.1) is gone, and process 1 of 2" in job.printed[1]


@pytest.mark.slow
def test_an_interrupt_of_process_0_ends_both(fake):
    job = fake()
    job.until(lambda: (job.workdirs[0] / "began").exists())
    job.kill(0, signal.SIGINT)
    assert job.statuses() == [130, 130], job.printed
    assert lines(job.printed[0])[-1] == "interrupted" and lines(job.printed[1]) == ["process 1 of 2 follows"]


@pytest.mark.slow
def test_a_refusal_in_process_0_ends_both(fake):
    job = fake("--config.does=refuse")
    assert job.statuses() == [2, 2], job.printed
    assert "error: does must be something else." in job.printed[0]
    assert lines(job.printed[1]) == ["process 1 of 2 follows"]
