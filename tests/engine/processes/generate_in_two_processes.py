"""One of two processes that serve one model together: run by test_lockstep.py, prints what it made as JSON."""

import asyncio
import json
import sys

import jax

from flexjax import LLM, SamplingParams
from flexjax.hardware import distributed
from flexjax.hardware.mesh import MeshConfig

distributed.join()

FOLDER, PROMPTS = sys.argv[1], json.loads(sys.argv[2])
SIZES = dict(dtype="float32", max_num_seqs=4, max_num_batched_tokens=32, page_size=8, max_model_len=112)
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
DRAWN = SamplingParams(temperature=1, max_tokens=24, n=2, ignore_eos=True)  # No seed: process 0 draws one for all.
DEVICES = jax.devices()
MESHES = {
    "one over both": (MeshConfig(tensor=8), DEVICES),
    "one in each": (MeshConfig(data=2, tensor=4), DEVICES),
    "two over both": (MeshConfig(data=2, tensor=4), [*DEVICES[0:2], *DEVICES[4:6], *DEVICES[2:4], *DEVICES[6:8]]),
}
index = jax.process_index()


def refusal(call) -> str:
    try:
        call()
    except (ValueError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


async def stream(llm: LLM, prompt, most: int | None = None) -> list[int]:
    tokens = []
    async for event in llm.stream(prompt, GREEDY):
        tokens += event.token_ids
        if most is not None and len(tokens) >= most:
            break
    return tokens


async def streams(llm: LLM) -> list[list[int]]:
    """Every prompt twice, all at once, and one whose listener goes away."""
    cut = stream(llm, PROMPTS[0], most=3)
    return (await asyncio.gather(cut, *(stream(llm, prompt) for prompt in (*PROMPTS, *PROMPTS))))[1:]


def serve(mesh: MeshConfig, devices) -> dict:
    """The same calls in both processes, then process 0 alone."""
    llm = LLM.load(FOLDER, mesh=mesh, devices=devices, **SIZES)
    outputs = llm.generate([*PROMPTS, PROMPTS[0]], [GREEDY] * len(PROMPTS) + [DRAWN])
    made: dict = {
        "greedy": [list(o.outputs[0].token_ids) for o in outputs[:-1]],
        "drawn": [list(o.token_ids) for o in outputs[-1].outputs],
        "logits": [float(x) for x in llm.score(PROMPTS[0], rows_per_step=32)[0][-1]],
        "other prompts": refusal(lambda: llm.generate([[1, 2, 3 + index]], GREEDY)),
        "bad prompt": refusal(lambda: llm.generate([[1, 2, 3], []], GREEDY)),
    }
    if index:
        made["stream"] = refusal(lambda: asyncio.run(stream(llm, PROMPTS[0])))
        llm.follow()
    else:
        made["stream"] = asyncio.run(streams(llm))
        made["alone"] = [list(o.outputs[0].token_ids) for o in llm.generate(PROMPTS, GREEDY)]
        made["open"] = llm.engine.num_open
        stats = llm.engine.stats
        made["tokens"] = [engine.stats.output_tokens for engine in llm.engine.engines]
        made["in order"] = [s.time for s in stats.samples] == sorted(s.time for s in stats.samples)
    llm.close()
    return made


made = {name: serve(*where) for name, where in MESHES.items()}
print(json.dumps({"devices": [jax.local_device_count(), jax.device_count()], **made}))
