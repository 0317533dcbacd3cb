"""Joins this process to those of the other hosts, so that they compute on one set of devices."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator

from flexjax.refusal import Refusal

WAIT_S = 300  # For the other processes to come.
LOST = 3  # Exit status where another process is gone, or did not come.

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Starts `jax.distributed`; afterwards `jax.devices()` are those of every process.

    Where JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID are set, they
    say who this is; else JAX asks the cluster: Cloud TPU, GKE, Slurm, Open MPI. Refusal where neither tells.
    Must run before JAX starts a backend; waits until every process has come, and ends this one with `LOST` where
    one has not within `WAIT_S` seconds.
    """
    import jax  # Not above: the launcher sets XLA flags before JAX is imported.

    given = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)}
    if not given:
        try:
            with on_abort(_nobody_came):
                jax.distributed.initialize(initialization_timeout=WAIT_S)
        except ValueError as error:
            raise Refusal(
                f"distributed=True joins several processes, and none of JAX's clusters (Cloud TPU, GKE, Slurm, Open "
                f"MPI) is here to say which ({error}). Set {ADDRESS}=host:port, {COUNT} and {INDEX}, as "
                "launch/nvidia_hosts.sh does."
            ) from error
        return
    if len(given) < 3 or ":" not in given[ADDRESS]:
        raise Refusal(
            f"{ADDRESS}=host:port, {COUNT} and {INDEX} say together which process of how many this is; got {given}."
        )
    count, index = _number(COUNT), _number(INDEX)
    if not 0 <= index < count:
        raise Refusal(f"{INDEX} counts from 0 to {COUNT} - 1; got {index} of {count}.")
    with on_abort(_nobody_came):
        jax.distributed.initialize(given[ADDRESS], count, index, initialization_timeout=WAIT_S)


@contextlib.contextmanager
def on_abort(call: Callable[[], None]) -> Iterator[None]:
    """Within it, `call` runs before this process is aborted, in the thread that aborts it: so JAX ends a process whose
    coordinator is gone, and does not say which process that was.

    A handler of Python's own would run in the main thread, and only when that comes back from JAX.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: call())
    before = library.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        library.signal(signal.SIGABRT, before)


def _nobody_came() -> None:
    where = os.environ.get(ADDRESS) or "the address that the cluster gives"
    print(
        f"error: this process waited {WAIT_S} s for the others at {where}, and not all of them came.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(LOST)


def coordinator_host() -> str:
    """The host of process 0, by the name under which every process has reached it."""
    from jax._src.distributed import global_state  # JAX has no public question for this.

    address = global_state.coordinator_address
    assert address is not None, "jax.distributed has not been initialised"
    return address.rpartition(":")[0].strip("[]")


def _number(variable: str) -> int:
    value = os.environ[variable]
    if not value.isdecimal():
        raise Refusal(f"{variable} is a whole number; got {value!r}.")
    return int(value)
