"""What serving a model keeps in memory: a process of its own loads it, answers one request and tells.

python -m flexjax.bench.resident DIRECTORY '{"weight_dtype": "int8"}' PROMPT OUTPUT
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from flexjax.engine import Engine, EngineConfig, Request, SamplingParams
from flexjax.hardware import memory


@dataclasses.dataclass(frozen=True)
class Resident:
    """In bytes, of the whole process, Python and JAX included."""

    resident: int  # When the request is answered.
    peak: int  # Loading and compiling included.
    weights: int
    cache: int


def resident(directory: str | Path, config: EngineConfig, *, prompt: int, output: int) -> Resident:
    """Of a process that serves the model directory by `config`, and compiles all its steps; the request has `prompt`
    tokens and gets `output`. RuntimeError with what the process said where it fails."""
    options = json.dumps(dataclasses.asdict(config))
    command = [sys.executable, "-m", "flexjax.bench.resident", str(directory), options, str(prompt), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The process that was to serve {directory} failed: {done.stderr[-2000:]}")
    return Resident(**json.loads(done.stdout.splitlines()[-1]))


def serve(directory: str, config: EngineConfig, prompt: int, output: int) -> Resident:
    """Loads and serves in this process."""
    engine = Engine.load(directory, config)
    params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
    engine.submit(Request("only", tuple(i % engine.runner.vocab_size for i in range(prompt)), params))
    while engine.step():
        pass
    held = memory.rss_bytes()
    return Resident(held, memory.peak_rss_bytes(), engine.runner.weight_bytes, engine.runner.cache_bytes)


if __name__ == "__main__":
    directory, options, prompt, output = sys.argv[1:]
    found = serve(directory, EngineConfig(**json.loads(options)), int(prompt), int(output))
    print(json.dumps(dataclasses.asdict(found)))
