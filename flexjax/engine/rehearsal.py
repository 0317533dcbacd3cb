"""The engine's decoding dispatches without an engine around them: what the device alone takes."""

import time
from collections.abc import Sequence as Seq

from flexjax.engine.engine import Engine
from flexjax.engine.processes.lockstep import Followers
from flexjax.engine.request import Request, SamplingParams
from flexjax.engine.scheduler import Chunk, Plan
from flexjax.engine.sequence import Sequence, Status
from flexjax.engine.text import TextStream
from flexjax.refusal import Refusal


def seconds_a_step(engine: Engine, prompts: Seq[tuple[int, ...]], context: int, dispatches: int = 25) -> float:
    """Of a decoding step in which each prompt's sequence holds `context` tokens, dispatched back to back.

    For an idle engine with a slot for each prompt. Followers in other processes take part.
    """
    num_steps = engine.config.decode_steps
    params = SamplingParams(temperature=0)
    chunks = []
    for slot, prompt in enumerate(prompts):
        sequence = Sequence(Request("", prompt, params), 0, 0, 0, 1, frozenset(), TextStream(None), list(prompt))
        sequence.slot, sequence.status = slot, Status.RUNNING
        if not engine.pool.grow(sequence.pages, context + num_steps):
            raise Refusal(f"The pool has no pages for {len(prompts)} sequences of {context + num_steps} tokens.")
        chunks.append(Chunk(sequence, context, 1, num_steps))
    plan = Plan(tuple(chunks), len(chunks), num_steps)
    if isinstance(engine.followers, Followers):
        engine.followers.replay(plan, 1 + dispatches)
    sampled = engine.runner.run(plan)
    sampled.tokens.block_until_ready()
    began = time.perf_counter()
    for _ in range(dispatches):
        sampled = engine.runner.run(plan)
    sampled.tokens.block_until_ready()
    seconds = time.perf_counter() - began
    for chunk in chunks:
        engine.pool.release(chunk.sequence.pages)
    return seconds / (dispatches * num_steps)
