"""One engine over several processes: each runs the same schedule, so that their steps meet."""

import dataclasses
import hashlib
import secrets
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from flexjax.engine.request import Request


def agreed(requests: Sequence[Request]) -> list[Request]:
    """The requests with seeds that are the same in every process; waits until all have come here.

    A schedule follows from the requests, their order and the tokens sampled alone, and those are the same
    everywhere when these are: ValueError, in every process, where one was given others.
    """
    stated = repr([(r.id, r.prompt_token_ids, r.params, r.priority) for r in requests])
    digest = np.frombuffer(hashlib.sha256(stated.encode()).digest(), np.uint8)
    everyone = multihost_utils.process_allgather(digest)
    if not (everyone == everyone[:1]).all():
        raise ValueError(
            f"An engine over several processes is given the same prompts and SamplingParams by each of them; those of "
            f"process {jax.process_index()} of {jax.process_count()} are among several that differ. Read them from one "
            "file, or give every process a model of its own with devices=jax.local_devices()."
        )
    if not requests:
        return []
    drawn = np.array([secrets.randbits(32) for _ in requests], np.uint32)
    seeds = multihost_utils.broadcast_one_to_all(drawn)
    return [
        r if r.params.seed is not None else dataclasses.replace(r, params=dataclasses.replace(r.params, seed=int(seed)))
        for r, seed in zip(requests, seeds, strict=True)
    ]
