"""The work itself, done in a process apart: limits, values and times."""

import dataclasses
import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from flexjax.kernels import Case, can_serve
from flexjax.lab import Loop, Probe, limits, measure, peers
from flexjax.lab.apart import passes, reason
from flexjax.lab.plan import BODY, Item, specs
from flexjax.lab.rows import Machine, Row

COPY_MIB = 1024
LAYERS = 4  # Calls of a step, whose weights together do not stay in a cache.
MOST_ERROR = {"float32": 1e-4, "bfloat16": 2e-2}  # Of the largest value.


def machine(rounds: int, round_s: float) -> Machine:
    """What the first device of this process reaches."""
    found = limits(["bfloat16"], rounds, round_s, [COPY_MIB])
    return Machine(jax.devices()[0].device_kind, found.copy[COPY_MIB], found.products["bfloat16"])


def healthy() -> None:
    """Raises where the device computes nothing any more, as after a kernel's illegal access."""
    jax.block_until_ready(jnp.arange(8) + 1)


def do(item: Item, rounds: int, round_s: float) -> list[Row]:
    """One row for each body that the item is about. What a body raises is its own row's, and goes on to the caller only
    where it ruined the process for the others."""
    return times(item, rounds, round_s) if item.what == "times" else [value(item)]


def value(item: Item) -> Row:
    """The body beside the one whose value is right, both compiled as they are served."""
    spec = (specs(item.op, "ARG_SPECS") | specs(item.op, "SERVING_SPECS"))[item.shape]
    call = getattr(importlib.import_module(f"flexjax.kernels.{item.op}"), item.op)
    options, arguments = getattr(spec, "options", {}), spec.arguments()
    served, right = (functools.partial(call, body=body, **options) for body in item.bodies)
    row = functools.partial(Row, "value", item.op, item.shape, item.bodies[0])
    allowed = MOST_ERROR[spec.dtype]
    if refusal := can_serve(served, arguments):
        return row("refused", refusal, allowed=allowed)
    got, want = (jax.tree.leaves(jax.jit(each)(*arguments)) for each in (served, right))
    error = max(map(error_of, got, want))
    return row("ok" if error <= allowed else "wrong", error=error, allowed=allowed)  # NaN is wrong.


def error_of(got: Any, want: Any) -> float:
    """The largest difference, of the largest finite value."""
    got, want = (jnp.asarray(each).astype(jnp.float32) for each in (got, want))
    apart = jnp.where(got == want, 0.0, jnp.abs(got - want))  # Equal infinities are equal.
    largest = jnp.max(jnp.where(jnp.isfinite(want), jnp.abs(want), 0.0))
    return float(jnp.max(apart) / jnp.maximum(largest, 1e-30))


def times(item: Item, rounds: int, round_s: float) -> list[Row]:
    """Of a call by each body, round by round."""
    rows: dict[str, Row] = {}
    loops: dict[str, Loop] = {}
    arguments = _Arguments()
    for case in cases(item):
        goal = item.goal if case.body == BODY else None
        row = functools.partial(Row, "times", case.op, case.shape, case.body, goal=goal)
        try:
            given = arguments.of(case)
            if refusal := can_serve(case.step, given):
                rows[case.body] = row("refused", refusal)
                continue
            loops[case.body] = Loop(case.step, *given)
            loops[case.body](1)  # Raises here what this body raises on the device.
        except Exception as error:  # Whatever a compiler, a driver or another library raises.
            if not passes(healthy):
                raise
            loops.pop(case.body, None)
            rows[case.body] = row("failed", reason(error))
            continue
        rows[case.body] = row(moved_bytes=case.moved_bytes, operations=case.operations)
    timed = measure([Probe(body, item.op, 0, loop) for body, loop in loops.items()], rounds, round_s)
    for r in timed:
        per_call = {f"{name}_s": getattr(r, name) / LAYERS for name in ("median", "low", "high")}
        rows[r.probe.name] = dataclasses.replace(rows[r.probe.name], **per_call)
    return list(rows.values())


def cases(item: Item) -> list[Case]:
    """The item's bodies, and peers, on its shape."""
    bench = importlib.import_module(f"flexjax.kernels.{item.op}.bench")
    spec = specs(item.op, "SERVING_SPECS")[item.shape]
    ours = lambda body: bench.case(item.shape, spec, body, LAYERS)
    theirs = lambda body: peers.case(item.op, item.shape, spec, body, LAYERS)
    return [theirs(body) if body in peers.peers(item.op, spec) else ours(body) for body in item.bodies]


class _Arguments:
    """Made once for all bodies of an op, which take the same: a host needs seconds for gigabytes of random numbers."""

    def __init__(self):
        self._made: Any = None

    def of(self, case: Case) -> Any:
        """A copy, since a loop's state is given away; a peer's own."""
        if case.body in peers.ALL:
            return case.make()
        if self._made is None:
            self._made = case.make()
        return jax.tree.map(jnp.copy, self._made)
