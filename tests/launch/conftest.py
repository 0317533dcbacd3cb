"""A small checkout whose launch scripts meet a fake gcloud, kubectl, ssh and scp, which record their calls."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Each call is written down. `list` tells what `create` made and `delete` took away, as the cloud does; a call that
# contains one of the strings in `fail` exits with 1.
FAKE = """#!{python}
import json, os, sys, time
from pathlib import Path

folder = Path({folder!r})
call = [Path(sys.argv[0]).name, *sys.argv[1:]]
line = " ".join(call)
with open(folder / "calls.jsonl", "a") as file:
    file.write(json.dumps(call) + "\\n")
plan = json.loads((folder / "plan.json").read_text())
if "apply" in call or "auth_token" in line:
    (folder / "stdin.txt").write_text(sys.stdin.read())
if any(part in line for part in plan["fail"]):
    sys.exit("fake failure")
if any(part in line for part in plan["hang"]):
    (folder / "hanging.pid").write_text(str(os.getpid()))
    time.sleep(60)
words = [word for word in call if not word.startswith("--project")]
if words[:3] == ["gcloud", "compute", "tpus"]:
    noun, verb, *rest = words[3:]
    kind = dict(word.split("=", 1) for word in rest if "=" in word)
    resources = json.loads((folder / "resources.json").read_text())
    if verb == "create":
        resources[noun] = dict(name=rest[0], type=kind["--accelerator-type"])
        if noun == "queued-resources":
            resources["tpu-vm"] = resources[noun]
    elif verb == "delete" and "refused" not in plan["delete"]:
        resources.pop(noun, None)
        if noun == "queued-resources":
            resources.pop("tpu-vm", None)
    elif verb == "list" and noun in resources and resources[noun]["name"] in kind["--filter"]:
        states = plan["states"]
        state = states.pop(0) if noun == "queued-resources" and len(states) > 1 else states[0]
        (folder / "plan.json").write_text(json.dumps(plan))
        print(resources[noun]["type"] if "acceleratorType" in line else state)
    (folder / "resources.json").write_text(json.dumps(resources))
if "get-auth-token" in line:
    print("a-secret")
"""


@dataclasses.dataclass
class Launch:
    """Runs a launch script; `calls` are what it called, in order."""

    checkout: Path
    folder: Path

    def __call__(self, script: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        return subprocess.run(
            [self.checkout / "launch" / script, *args],
            cwd=self.checkout,
            env={**os.environ, "PATH": path, "POLL_SECONDS": "0", **environment},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def plan(self, **changes: list[str]) -> None:
        """What the fakes shall do: fail, hang (calls that contain a string), states (of the queue, in turn)."""
        file = self.folder / "plan.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    @property
    def calls(self) -> list[list[str]]:
        file = self.folder / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def changes(self) -> list[list[str]]:
        """The calls that do more than ask."""
        return [call for call in self.calls if "list" not in call]

    @property
    def stdin(self) -> str:
        return (self.folder / "stdin.txt").read_text()


@pytest.fixture
def launch(tmp_path) -> Launch:
    checkout, folder = tmp_path / "checkout", tmp_path / "fake"
    shutil.copytree(REPOSITORY / "launch", checkout / "launch")
    (checkout / "flexjax" / "hardware").mkdir(parents=True)
    shutil.copy(REPOSITORY / "flexjax" / "hardware" / "chips.toml", checkout / "flexjax" / "hardware")
    subprocess.run(["git", "init", "-q", checkout], check=True)
    (folder / "bin").mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(dict(fail=[], hang=[], delete=[], states=["ACTIVE"])))
    (folder / "resources.json").write_text("{}")
    for tool in ("gcloud", "kubectl", "ssh", "scp"):
        fake = folder / "bin" / tool
        fake.write_text(FAKE.format(python=sys.executable, folder=str(folder)))
        fake.chmod(0o755)
    return Launch(checkout, folder)
