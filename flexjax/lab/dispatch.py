"""What a call costs that computes nothing."""

import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from flexjax.lab.timing import Loop, Probe, waiting

ARGUMENTS = 300  # About as many arrays as a model of thirty layers has.


def dispatch() -> Iterator[Probe]:
    """Probes of one call: enqueued behind others; waited for; with many arguments; and an integer's way to the device
    and back."""
    yield Probe("enqueued", "dispatch", 0, Loop(_add_one, jnp.zeros(())))
    yield Probe("waited for", "dispatch", 0, waiting(Loop(_add_one, jnp.zeros(()))))
    many = [jnp.full((), i, jnp.float32) for i in range(ARGUMENTS)]
    yield Probe(f"of {ARGUMENTS} arrays", "dispatch", 0, waiting(Loop(lambda x, _: x + 1.0, jnp.zeros(()), many)))
    yield Probe("to the device and back", "dispatch", 0, _round_trips)


def _add_one(x: jax.Array) -> jax.Array:
    return x + 1.0


def _round_trips(calls: int) -> float:
    began = time.perf_counter()
    for i in range(calls):
        np.asarray(jax.device_put(np.int32(i)))
    return time.perf_counter() - began
