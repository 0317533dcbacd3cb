"""One of two processes that serve one model together: run by test_lockstep.py, prints what it made as JSON."""

import json
import sys

import jax

from flexjax import LLM, SamplingParams
from flexjax.hardware import distributed
from flexjax.hardware.mesh import MeshConfig

distributed.join()

FOLDER, PROMPTS = sys.argv[1], json.loads(sys.argv[2])
SIZES = dict(dtype="float32", max_num_seqs=4, max_num_batched_tokens=32, page_size=8, max_model_len=112)


def refusal(call) -> str:
    try:
        call()
    except (ValueError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


llm = LLM.load(FOLDER, mesh=MeshConfig(tensor=-1), **SIZES)
greedy = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
drawn = SamplingParams(temperature=1, max_tokens=24, n=2, ignore_eos=True)  # No seed: process 0 draws one for all.
outputs = llm.generate([*PROMPTS, PROMPTS[0]], [greedy] * len(PROMPTS) + [drawn])
index = jax.process_index()
print(
    json.dumps(
        {
            "devices": [jax.local_device_count(), jax.device_count()],
            "greedy": [list(o.outputs[0].token_ids) for o in outputs[:-1]],
            "drawn": [list(o.token_ids) for o in outputs[-1].outputs],
            "logits": [float(x) for x in llm.score(PROMPTS[0])[0][-1]],
            "other prompts": refusal(lambda: llm.generate([[1, 2, 3 + index]], greedy)),
            "thread": refusal(llm.engine.start),
            "replicas": refusal(lambda: LLM.load(FOLDER, mesh=MeshConfig(data=2, tensor=4), **SIZES)),
        }
    )
)
