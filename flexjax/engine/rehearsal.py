"""The engine's decoding dispatches without an engine around them: what the device alone takes."""

import time
from collections.abc import Sequence as Seq

from flexjax.engine.engine import Engine
from flexjax.engine.processes.lockstep import Followers
from flexjax.engine.request import Request, SamplingParams
from flexjax.engine.scheduler import Chunk, Plan
from flexjax.engine.sequence import Sequence, Status
from flexjax.engine.text import TextStream


def seconds_a_step(engine: Engine, prompts: Seq[tuple[int, ...]], context: int, dispatches: int = 25) -> float:
    """Of a decoding step in which each prompt's sequence holds `context` tokens, dispatched back to back.

    For an idle engine with a slot for each prompt. Followers in other processes take part.
    """
    num_steps = engine.config.decode_steps
    params = SamplingParams(temperature=0)
    chunks, pages = [], iter(range(1, engine.pool.capacity + 1))
    for slot, prompt in enumerate(prompts):
        sequence = Sequence(Request("", prompt, params), 0, 0, 0, 1, frozenset(), TextStream(None), list(prompt))
        sequence.slot, sequence.status = slot, Status.RUNNING
        sequence.pages = [next(pages) for _ in range(engine.pool.pages_for(context + num_steps))]
        chunks.append(Chunk(sequence, context, 1, num_steps))
    plan = Plan(tuple(chunks), len(chunks), num_steps)
    if isinstance(engine.followers, Followers):
        engine.followers.replay(plan, 1 + dispatches)
    engine.runner.run(plan).tokens.block_until_ready()
    began = time.perf_counter()
    for _ in range(dispatches):
        sampled = engine.runner.run(plan)
    sampled.tokens.block_until_ready()
    return (time.perf_counter() - began) / (dispatches * num_steps)
