"""Which body serves an op, and the record of which one did.

A body that cannot serve raises NotImplementedError with the reason, and the next one is tried. The
choice is made while JAX traces, so one compiled function keeps the bodies it was traced with.
"""

import contextlib
import contextvars
import dataclasses
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax

from flexjax.refusal import Refusal, Unsupported

ENVIRONMENT = "FLEXJAX_KERNEL_BODIES"  # For example "ragged_paged_attention=xla".


@dataclasses.dataclass(frozen=True)
class Choice:
    """The body that served an op, and those passed over before it: (body, reason) each."""

    body: str
    passed_over: tuple[tuple[str, str], ...] = ()


_asked: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("asked", default=MappingProxyType({}))
_used: dict[str, list[Choice]] = {}
_recordings: list[dict[str, list[Choice]]] = []


def bodies_used() -> dict[str, tuple[Choice, ...]]:
    """Op → the distinct choices traced in this process since `forget`, in the order they came up."""
    return {op: tuple(choices) for op, choices in _used.items()}


def forget() -> None:
    """Empties `bodies_used`."""
    _used.clear()


@contextlib.contextmanager
def recording() -> Iterator[Mapping[str, Sequence[Choice]]]:
    """Op → the distinct choices traced within it, by whatever thread; `bodies_used` is not changed by it."""
    record: dict[str, list[Choice]] = {}
    _recordings.append(record)
    try:
        yield record
    finally:
        _recordings[:] = [other for other in _recordings if other is not record]


@contextlib.contextmanager
def use_bodies(**bodies: str) -> Iterator[None]:
    """Within it, op `name` is traced with exactly the body given: `use_bodies(ragged_paged_attention="xla")`."""
    token = _asked.set({**_asked.get(), **bodies})
    try:
        yield
    finally:
        _asked.reset(token)


def for_threads[**P, T](function: Callable[P, T]) -> Callable[P, T]:
    """The function as other threads may call it: with the bodies that `use_bodies` asks for in this one."""
    context = contextvars.copy_context()

    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.copy().run(function, *args, **kwargs)

    return called


def asked_for(op: str) -> str | None:
    """The body that `use_bodies`, else the environment, asks for."""
    if op in _asked.get():
        return _asked.get()[op]
    pairs = [entry.partition("=") for entry in os.environ.get(ENVIRONMENT, "").split(",") if entry]
    return {name.strip(): body.strip() for name, _, body in pairs}.get(op)


def platform() -> str:
    """Where a program that is being traced will run, "cpu", "tpu" or "gpu": the platform of the abstract mesh in use
    (a compile for a described chip), else that of this process."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    return described.platform if described is not None else jax.default_backend()


def device_kind() -> str:
    """The kind of the devices that a program being traced will run on, as `platform` finds them."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    return described.device_kind if described is not None else jax.devices()[0].device_kind


def on_mesh() -> bool:
    """While tracing: whether several devices are in use, and no shard_map has given them their parts already."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and not mesh.manual_axes


def refuse_mesh() -> None:
    """NotImplementedError where a kernel would be given every device's part: on a mesh, outside `jax.shard_map`."""
    if on_mesh():
        size = jax.sharding.get_abstract_mesh().size
        raise NotImplementedError(
            f"a mesh of {size} devices is in use, and a kernel is not split over {size} devices; call the op "
            "inside jax.shard_map"
        )


def on_demand(module: str, function: str, package: str, extra: str) -> Callable[..., Any]:
    """The body `function` of `module`, which is imported when it is first called: it needs `package`, and refuses where
    that is not installed."""

    def body(*args: Any, **kwargs: Any) -> Any:
        if importlib.util.find_spec(package) is None:
            raise NotImplementedError(f"{package} is not installed (pip install 'flexjax[{extra}]')")
        return getattr(importlib.import_module(module), function)(*args, **kwargs)

    return body


def serve(
    op: str, bodies: Mapping[str, Callable[..., Any]], order: Sequence[str], body: str | None, *args: Any, **kwargs: Any
) -> Any:
    """What the first body of `order` that can serve returns; `body`, or else `asked_for`, names the only one to try.

    Refusal for a body that the op does not have, Unsupported with every reason when none serves.
    """
    body = body or asked_for(op)
    if body is not None and body not in bodies:
        raise Refusal(f"{op} has the bodies {', '.join(bodies)}; {body!r} was asked for.")
    passed_over: list[tuple[str, str]] = []
    for name in (body,) if body else order:
        try:
            with jax.named_scope(op):  # By which a compiled program tells one op's kernels from another's.
                result = bodies[name](*args, **kwargs)
        except NotImplementedError as error:
            passed_over.append((name, str(error)))
            continue
        choice = Choice(name, tuple(passed_over))
        for record in (_used, *_recordings):
            if choice not in record.setdefault(op, []):
                record[op].append(choice)
        return result
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over)
    raise Unsupported(f"No body of {op} serves this call. {reasons}.")
